"""JWTs of an external issuer: which are genuine, whom they stand for, and that all forgeries look alike."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from server import credentials, database
from server.app import create_app
from server.auth import MAX_TOKEN_CHARACTERS
from server.credentials import LEEWAY
from server.errors import TokenExpired, Unauthenticated
from server.issuer import Issuer, open_issuer, read_key_file
from server.settings import Settings, SettingsError
from tests.jwts import HEADER, ISSUER, SECRET, claims_of, compact, encode, guest, hs256, new_subject, token_of, write
from tests.people import Person, code, good, new_email
from tests.processes import environ_of, running_api_process

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def rs256(key: rsa.RSAPrivateKey = RSA) -> Callable[[bytes], bytes]:
    return lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA256())


def es256(key: ec.EllipticCurvePrivateKey = EC) -> Callable[[bytes], bytes]:
    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def public_jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, **more: Any) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**jwk, **more}


def pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


NOW = int(time.time())

# Here the two alphabets differ.
PLAIN = '{"alg":"HS256","x":"ÿÿÿ?>"}'.encode()
# Sixteen bytes: two characters of padding, and four bits to spare.
SIXTEEN = b'{"alg": "HS256"}'

ISSUERS: list[Any] = ["", "https://other.example", ISSUER + "/", ISSUER.upper(), f" {ISSUER}", [ISSUER], {}, 1, True]
EXPIRIES: list[Any] = [str(NOW + 3600), True, [NOW + 3600], {}, "2099-01-01T00:00:00Z", ""]

KEYS = {"HS256": [SECRET]}
NEVER: Callable[[bytes], bytes] = lambda _: b""  # noqa: E731 - a signature like the others
SOMEBODY = "5b0a5e6c-9d0f-4a53-9f3c-6f0c1d1f7e11"


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(ISSUER, "authenticated", {"HS256": [SECRET]})


# -------------------------------------------------------------------------------------------- forgeries


class Forgery(NamedTuple):
    name: str
    token: str


def with_header(sign: Callable[[bytes], bytes] | None = None, **changes: Any) -> str:
    header = {name: value for name, value in ({**HEADER, **changes}).items() if value is not None}
    return compact(header, claims_of(SOMEBODY), sign)


def with_claims(**changes: Any) -> str:
    return compact(HEADER, claims_of(SOMEBODY, **changes))


def with_raw(header: bytes | None = None, claims: bytes | None = None) -> str:
    return compact(header or HEADER, claims or claims_of(SOMEBODY))


def raw_claims(extra: str) -> bytes:
    """Good claims, and then more text inside of the object."""
    return json.dumps(claims_of(SOMEBODY))[:-1].encode() + f", {extra}}}".encode()


def parts(token: str) -> list[str]:
    return token.split(".")


def spare_bits(token: str) -> str:
    """The same bytes in another spelling, where their last character holds more bits than are needed."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


def forgeries() -> list[Forgery]:
    good_token = with_claims()
    header, payload, signature = parts(good_token)
    own_key = public_jwk(OTHER_RSA)
    now = NOW
    found = {
        # The algorithm is the token's to choose in none of these.
        **{
            f"alg {alg!r}, {told}": with_header(sign, alg=alg)
            for alg in ("none", "None", "NONE", "nOnE", "", " none", "none ", "HS256 ", "hs256", "Hs256")
            for told, sign in (("unsigned", NEVER), ("signed", hs256()))
        },
        **{
            f"alg {alg!r}": with_header(alg=alg)
            for alg in (["HS256"], {"HS256": 1}, 256, True, ["none"], "HS384", "HS512", "RS256", "ES256", "dir")
        },
        "no alg": with_header(alg=None),
        "alg none, two parts": ".".join(parts(with_header(NEVER, alg="none"))[:2]),
        "HS384, as it says": with_header(lambda m: hmac.new(SECRET, m, hashlib.sha384).digest(), alg="HS384"),
        "HS512, as it says": with_header(lambda m: hmac.new(SECRET, m, hashlib.sha512).digest(), alg="HS512"),
        "empty signature": f"{header}.{payload}.",
        "no signature": f"{header}.{payload}",
        "signature of zeros": f"{header}.{payload}.{encode(bytes(32))}",
        "another secret": compact(HEADER, claims_of(SOMEBODY), hs256(b"x" * 32)),
        "empty secret": compact(HEADER, claims_of(SOMEBODY), hs256(b"")),
        "another's signature": ".".join((header, payload, parts(with_claims(sub="other"))[2])),
        "another payload": ".".join((header, encode(write(claims_of("admin"))), signature)),
        "another header": ".".join((encode(write({**HEADER, "x": 1})), payload, signature)),
        # Keys that come with the token, or that it points to.
        "embedded jwk": with_header(rs256(OTHER_RSA), alg="RS256", jwk=own_key),
        "embedded symmetric jwk": with_header(hs256(b"k" * 32), jwk={"kty": "oct", "k": encode(b"k" * 32)}),
        "jku": with_header(rs256(OTHER_RSA), alg="RS256", jku="http://127.0.0.1:9/keys.json"),
        "x5u": with_header(rs256(OTHER_RSA), alg="RS256", x5u="http://127.0.0.1:9/cert.pem"),
        "x5c": with_header(rs256(OTHER_RSA), alg="RS256", x5c=["MIIB"]),
        "kid to an empty file": with_header(hs256(b""), kid="../../../../dev/null"),
        "kid in SQL": with_header(hs256(b"key"), kid="x' UNION SELECT 'key' --"),
        "kid in a shell": with_header(hs256(b"key"), kid="|echo key"),
        "kid with a file": with_header(hs256(b"x" * 32), kid="file:///etc/passwd"),
        # What has to be understood, and is not.
        "crit": with_header(crit=["exp"]),
        "empty crit": with_header(crit=[]),
        "crit of null": compact({**HEADER, "crit": None}, claims_of(SOMEBODY)),
        "b64 false": with_header(b64=False, crit=["b64"]),
        "b64 true": with_header(b64=True),
        "JWE": ".".join([encode(write({"alg": "dir", "enc": "A256GCM"})), "", encode(b"iv"), payload, signature]),
        "JWE of three parts": with_header(alg="dir", enc="A256GCM"),
        # Texts that two readers might read differently.
        "header twice alg": with_raw(header=b'{"alg": "none", "alg": "HS256"}'),
        "header twice alg, the other way": with_raw(header=b'{"alg": "HS256", "alg": "none"}'),
        "header twice alg, escaped": with_raw(header=b'{"alg": "HS256", "\\u0061lg": "HS256"}'),
        "header is a list": with_raw(header=b'["HS256"]'),
        "header is no JSON": with_raw(header=b"HS256"),
        "header with a mark": with_raw(header=b'\xef\xbb\xbf{"alg": "HS256"}'),
        "header in UTF-16": with_raw(header=json.dumps(HEADER).encode("utf-16-le")),
        "header with NaN": with_raw(header=b'{"alg": "HS256", "x": NaN}'),
        "deep header": with_raw(header=b'{"alg": "HS256", "x": ' + b"[" * 100 + b"]" * 100 + b"}"),
        "payload is a list": with_raw(claims=b"[]"),
        "payload is a text": with_raw(claims=b'"sub"'),
        "payload is empty": f"{header}..{encode(hs256()(f'{header}.'.encode()))}",
        "payload is no JSON": with_raw(claims=b"{"),
        "payload not UTF-8": with_raw(claims=b'{"sub": "\xff"}'),
        **{
            f"payload twice {name}": with_raw(claims=raw_claims(f'"{name}": {json.dumps(value)}'))
            for name, value in (("sub", "admin"), ("exp", now + 9), ("iss", ISSUER), ("aud", "authenticated"))
        },
        "payload twice sub, escaped": with_raw(claims=raw_claims('"s\\u0075b": "admin"')),
        "payload twice, deep inside": with_raw(claims=raw_claims('"x": {"a": 1, "a": 2}')),
        "deep payload": with_raw(claims=raw_claims('"x": ' + "[" * 70 + "]" * 70)),
        "infinite exp": with_raw(claims=write(claims_of(SOMEBODY, exp=None))[:-1] + b', "exp": Infinity}'),
        "exp of 1e999": with_raw(claims=write(claims_of(SOMEBODY, exp=None))[:-1] + b', "exp": 1e999}'),
        "exp not a number": with_raw(claims=write(claims_of(SOMEBODY, exp=None))[:-1] + b', "exp": NaN}'),
        # Spellings of the parts.
        "truncated": good_token[:-1],
        "one character more": good_token + "A",
        "padded": good_token + "=",
        "padded header": ".".join((header + "=" * (-len(header) % 4 or 4), payload, signature)),
        "padded and signed so": _signed(base64.urlsafe_b64encode(SIXTEEN).decode(), payload),
        "plain base64": _signed(base64.b64encode(PLAIN).decode(), payload),
        "spare bits": spare_bits(good_token),
        "spare bits in the header": _signed(spare_bits(encode(SIXTEEN)), payload),
        "line break": f"{header}.{payload}.\n{signature}",
        "percent": good_token.replace(".", "%2E"),
        "four parts": f"{good_token}.{signature}",
        "no header": f".{payload}.{signature}",
        "only dots": "..",
        "with a prefix of ours": f"sbs_{good_token}",
        "huge": compact({**HEADER, "x": "x" * MAX_TOKEN_CHARACTERS}, claims_of(SOMEBODY)),
        "huge, and good": with_claims(x="x" * MAX_TOKEN_CHARACTERS),
        # Claims that are missing, of another type, or not for here.
        **{f"no {name}": with_claims(**{name: None}) for name in ("iss", "sub", "aud", "exp")},
        **{f"iss {iss!r}": with_claims(iss=iss) for iss in ISSUERS},
        **{f"sub {sub!r:.20}": with_claims(sub=sub) for sub in ("", "x" * 256, 1, 1.5, True, [SOMEBODY], {"a": 1})},
        "sub with NUL": with_claims(sub="a\0b"),
        "sub a lone surrogate": with_claims(sub="\ud800"),
        **{
            f"aud {aud!r}": with_claims(aud=aud)
            for aud in ("", "anon", "Authenticated", [], ["anon"], ["authenticated", 1], {"authenticated": 1}, 1, True)
        },
        **{f"exp number {number}": with_claims(exp=exp) for number, exp in enumerate(EXPIRIES)},
        "exp null": compact(HEADER, {**claims_of(SOMEBODY), "exp": None}),
        **{
            f"{name} {told}": with_claims(**{name: value})
            for name in ("nbf", "iat")
            for told, value in (("in the future", now + 600), ("a text", str(now)), ("true", True), ("a list", [now]))
        },
        "iat null": compact(HEADER, {**claims_of(SOMEBODY), "iat": None}),
        "nbf null": compact(HEADER, {**claims_of(SOMEBODY), "nbf": None}),
        # It would have expired, were it any good.
        "expired, and forged": compact(HEADER, claims_of(SOMEBODY, exp=now - 600), hs256(b"x" * 32)),
        "expired, wrong audience": with_claims(exp=now - 600, aud="anon"),
        "expired, wrong issuer": with_claims(exp=now - 600, iss="https://other.example"),
        "expired, no subject": with_claims(exp=now - 600, sub=None),
        "expired, and in the future": with_claims(exp=now - 600, nbf=now + 600),
    }
    return [Forgery(name, token) for name, token in found.items()]


def _signed(header: str, payload: str) -> str:
    return f"{header}.{payload}.{encode(hs256()(f'{header}.{payload}'.encode()))}"


FORGERIES = forgeries()
# What is longer than any token is refused before it comes to the issuer.
NOT_HUGE = [forgery for forgery in FORGERIES if len(forgery.token) <= MAX_TOKEN_CHARACTERS]
# And what is only too early, the database's clock decides.
FALSE = [forgery for forgery in NOT_HUGE if "in the future" not in forgery.name]


def test_table_of_forgeries_begins_with_what_is_good(issuer: Issuer) -> None:
    """Each forgery differs in one thing from a token that is taken: else the table would show nothing."""
    claims = issuer.verify(with_claims())
    assert (claims.issuer, claims.subject) == (ISSUER, SOMEBODY)
    for token in (
        with_claims(aud=["anon", "authenticated"]),
        with_claims(sub="x" * 255),
        with_claims(exp=time.time() + 5.5, nbf=time.time(), iat=time.time()),
        with_claims(exp=10**300, iat=-(10**300)),
        with_claims(iat=None),
        with_raw(claims=raw_claims('"x": ' + "[" * 60 + "]" * 60)),
        with_header(kid="../../../../dev/null"),
        with_header(kid="x' OR 1=1 --", jku="http://127.0.0.1:9/", x5u="http://127.0.0.1:9/", x5c=["MIIB"]),
        with_header(jwk={"kty": "oct", "k": "AAAA"}, typ=None),
        with_raw(header=SIXTEEN),
        _signed(encode(PLAIN), parts(with_claims())[1]),
    ):
        assert issuer.verify(token).issuer == ISSUER, token


@pytest.mark.parametrize("forgery", FALSE, ids=lambda forgery: forgery.name)
def test_forgery_is_nobody(issuer: Issuer, forgery: Forgery) -> None:
    with pytest.raises(Unauthenticated) as caught:
        issuer.verify(forgery.token)
    assert type(caught.value) is Unauthenticated


async def test_every_forgery_answers_the_very_same(server: str, database_pool: None) -> None:
    before = await database.fetchval("SELECT count(*) FROM users WHERE issuer IS NOT NULL")
    async with httpx.AsyncClient(base_url=server) as http:
        first = await answer_to(http, "nothing of the kind")
        for forgery in FORGERIES:
            if "\n" not in forgery.token:
                assert await answer_to(http, forgery.token) == first, forgery.name
    assert await database.fetchval("SELECT count(*) FROM users WHERE issuer IS NOT NULL") == before


async def answer_to(http: httpx.AsyncClient, token: str) -> tuple[int, bytes, dict[str, str]]:
    answer = await http.get("/me", headers={"Authorization": f"Bearer {token}"})
    assert code(answer) == (401, "unauthenticated")
    own = {"x-request-id", "date"}
    return answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k not in own}


async def test_leeway_is_thirty_seconds_either_way(issuer: Issuer, database_pool: None) -> None:
    async def recognize(**claims: float) -> None:
        await credentials.recognize(issuer.verify(with_claims(**claims)), Settings())

    now, leeway = time.time(), LEEWAY.total_seconds()
    await recognize(exp=now - leeway + 5, iat=now + leeway - 5, nbf=now + leeway - 5)
    for early in ({"iat": now + leeway + 5}, {"nbf": now + leeway + 5}):
        with pytest.raises(Unauthenticated):
            await recognize(**early)
    for exp in (now - leeway - 1, now - 10**6, 0, -1, -(10**300)):
        with pytest.raises(TokenExpired):
            await recognize(exp=exp)


async def test_it_is_the_clock_of_the_database_that_counts(
    server: str, monkeypatch: pytest.MonkeyPatch, issuer: Issuer
) -> None:
    token, now = token_of(SOMEBODY), time.time()
    for wrong_by in (-3600, 3600):
        monkeypatch.setattr(time, "time", lambda wrong_by=wrong_by: now + wrong_by)
        assert (await credentials.recognize(issuer.verify(token), Settings())).kind == "jwt"


async def test_genuine_but_old_token_says_that_it_has_expired(server: str) -> None:
    async with httpx.AsyncClient(base_url=server) as http:
        answer = await http.get("/me", headers=bearer(token_of(SOMEBODY, exp=int(time.time()) - 60)))
        assert code(answer) == (401, "token_expired")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_forgeries_cost_little(issuer: Issuer) -> None:
    """Whoever sends them has nothing: no database, no Argon2id, and far less than a millisecond each."""
    began = time.perf_counter()
    for forgery in FALSE:
        with pytest.raises(Unauthenticated):
            issuer.verify(forgery.token)
    assert (time.perf_counter() - began) / len(FALSE) < 0.001


# ------------------------------------------------------------------------------------------ whom it is


async def test_first_sight_makes_a_user_of_the_identity_alone(server: str, database_pool: None) -> None:
    claims = {"role": "service_role", "is_admin": True, "app_metadata": {"roles": ["admin"]}, "groups": ["admin"]}
    async with guest(server, "Gina", **claims) as gina:
        me = good(await gina.get("/me"))
        assert (me["name"], me["email"], me["is_admin"]) == ("Gina", None, False)
        row = await database.fetchrow("SELECT * FROM users WHERE id = $1", gina.id)
        assert row is not None
        assert (row["issuer"], row["subject"], row["claimed_email"]) == (ISSUER, gina.subject, "eve@example.org")
        assert (row["email"], row["email_key"], row["password"], row["is_admin"]) == (None, None, None, False)


async def test_only_issuer_and_subject_tell_who_it_is(server: str) -> None:
    subject = new_subject()
    async with httpx.AsyncClient(base_url=server) as http:

        async def me(**claims: Any) -> dict[str, Any]:
            return dict(good(await http.get("/me", headers=bearer(token_of(subject, **claims)))))

        first = await me(name="Gina", email="gina@example.org")
        assert await me(name="Admin", email="other@example.org", jti="x", session_id="y") == first
        assert (await me(sub=subject.upper()))["id"] != first["id"]
        assert (await me(sub=subject + " "))["id"] != first["id"]


@pytest.mark.parametrize(
    ("claims", "name", "email"),
    [
        ({}, "Someone", "eve@example.org"),
        ({"name": ""}, "Someone", "eve@example.org"),
        ({"name": "x" * 101}, "Someone", "eve@example.org"),
        ({"name": ["Gina"], "email": ["a@b"]}, "Someone", None),
        ({"name": {"a": 1}, "email": {}}, "Someone", None),
        ({"name": 7, "email": 7}, "Someone", None),
        ({"name": True, "email": True}, "Someone", None),
        ({"name": "x" * 100, "email": "nobody"}, "x" * 100, None),
        ({"name": "'); DROP TABLE users; --", "email": "a@b\n"}, "'); DROP TABLE users; --", None),
        # Where Supabase has it.
        ({"user_metadata": {"name": "Gina", "full_name": "Gina G."}}, "Gina", "eve@example.org"),
        ({"user_metadata": {"full_name": "Gina G."}}, "Gina G.", "eve@example.org"),
        ({"name": "Gina", "user_metadata": {"name": "Eve"}}, "Gina", "eve@example.org"),
        ({"name": 7, "user_metadata": {"name": "Eve"}}, "Someone", "eve@example.org"),
        ({"user_metadata": {"name": "x" * 101}}, "Someone", "eve@example.org"),
        ({"user_metadata": {"full_name": ["Gina"]}}, "Someone", "eve@example.org"),
        ({"user_metadata": "Gina"}, "Someone", "eve@example.org"),
        ({"email": "x" * 250 + "@b.c"}, "Someone", "x" * 250 + "@b.c"),
        ({"email": "x" * 251 + "@b.c"}, "Someone", None),
    ],
)
async def test_name_and_email_that_do_not_fit_are_left_out(
    server: str, database_pool: None, claims: dict[str, Any], name: str, email: str | None
) -> None:
    async with httpx.AsyncClient(base_url=server) as http:
        me = good(await http.get("/me", headers=bearer(token_of(new_subject(), **claims))))
    assert me["name"] == name
    assert await database.fetchval("SELECT claimed_email FROM users WHERE id = $1", UUID(me["id"])) == email


async def test_local_account_of_the_same_email_is_never_taken_over(
    server: str, alice: Person, bob: Person, database_pool: None
) -> None:
    before = await database.fetchrow("SELECT * FROM users WHERE id = $1", alice.id)
    async with guest(server, "Alice", email=alice.user["email"], email_verified=True) as imposter:
        assert imposter.id != alice.id
        group_id = await alice.found_group()
        assert code(await imposter.get(f"/groups/{group_id}")) == (404, "group_not_found")
        # An address finds the local account, whoever claims it.
        added = good(await alice.post(f"/groups/{group_id}/members", {"email": bob.user["email"]}), 201)
        assert added["user_id"] == str(bob.id)
    async with guest(server, "Nobody", email=new_email()) as other:
        claimed = await database.fetchval("SELECT claimed_email FROM users WHERE id = $1", other.id)
        answer = await alice.post(f"/groups/{group_id}/members", {"email": claimed})
        assert code(answer) == (404, "user_not_found")
    assert await database.fetchrow("SELECT * FROM users WHERE id = $1", alice.id) == before
    # The subject is no id of ours, whatever it looks like.
    async with httpx.AsyncClient(base_url=server) as http:
        assert good(await http.get("/me", headers=bearer(token_of(str(alice.id)))))["id"] != str(alice.id)


async def test_user_of_the_issuer_does_what_others_do(server: str, alice: Person) -> None:
    async with guest(server) as gina:
        await gina.enrol()
        group_id = await gina.found_group(alice)
        post = await gina.publish(group_id, "A title", "Some text")
        assert gina.open(good(await gina.get(f"/posts/{post['id']}"))) == ("A title", "Some text")
        async with gina.listen() as listener:
            await gina.publish(group_id)
            await listener.has_heard("post.sealed", group_id=group_id)


async def test_disabled_user_of_the_issuer_is_nobody(server: str, database_pool: None) -> None:
    async with guest(server) as gina, gina.listen() as listener:
        await database.execute("UPDATE users SET disabled_at = now() WHERE id = $1", gina.id)
        assert code(await gina.get("/me")) == (401, "unauthenticated")
        assert await listener.closed(within_s=8) == 4408


async def test_token_from_before_the_deletion_revives_nobody(server: str, database_pool: None) -> None:
    now = int(time.time())
    async with guest(server, iat=now - 100) as gina:
        # Deleted a minute ago, as far as the tokens can tell.
        await credentials.forget_identity(ISSUER, gina.subject)
        await database.execute(
            "UPDATE deleted_ids SET created_at = now() - interval '1 minute' WHERE id = $1",
            credentials._identity_id(ISSUER, gina.subject),
        )
        await database.execute("DELETE FROM users WHERE id = $1", gina.id)
        for iat in (now - 100, now - 61, now - 50, None, 0, -(10**300)):
            answer = await gina.client.get("/me", headers=bearer(token_of(gina.subject, iat=iat)))
            assert code(answer) == (401, "unauthenticated"), iat
        assert code(await gina.get("/me")) == (401, "unauthenticated")

        anew = good(await gina.client.get("/me", headers=bearer(token_of(gina.subject, iat=now))))
        assert anew["id"] != str(gina.id)
        assert code(await gina.get("/me")) == (401, "unauthenticated"), "nor does the new user take the old token"
        undated = bearer(token_of(gina.subject, iat=None))
        assert code(await gina.client.get("/me", headers=undated)) == (401, "unauthenticated")
        await database.execute(
            "UPDATE deleted_ids SET created_at = now() - interval '25 hours' WHERE id = $1",
            credentials._identity_id(ISSUER, gina.subject),
        )
        assert good(await gina.client.get("/me", headers=undated)) == anew


async def test_deletion_that_is_under_way_is_not_undone_by_a_first_sight(server: str, database_pool: None) -> None:
    """Who looked before the deletion, and makes the user after it, sees it once more and makes nobody."""
    async with guest(server) as gina:
        claims = Issuer(ISSUER, "authenticated", KEYS).verify(gina.token)
        async with database.transaction():
            await credentials.forget_identity(ISSUER, gina.subject)
            await database.execute("DELETE FROM users WHERE id = $1", gina.id)
        with pytest.raises(Unauthenticated):
            await credentials._make_user(claims, Settings())
        assert await database.fetchval("SELECT count(*) FROM users WHERE subject = $1", gina.subject) == 0


async def test_known_user_costs_one_statement(
    server: str, database_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(server) as gina:
        claims = Issuer(ISSUER, "authenticated", KEYS).verify(gina.token)
        statements: list[str] = []
        executor, task = database._executor, asyncio.current_task()

        def counting() -> Any:
            # The sweeps and checks of the server that runs in this process do not count.
            if asyncio.current_task() is task:
                statements.append("one")
            return executor()

        monkeypatch.setattr(database, "_executor", counting)
        caller = await credentials.recognize(claims, Settings())
        assert (caller.user_id, caller.kind, len(statements)) == (gina.id, "jwt", 1)


# ----------------------------------------------------------------------------------------- processes


@pytest.fixture
async def two_processes(settings: Settings, migrated: None, tmp_path: Path) -> AsyncIterator[list[str]]:
    environ = environ_of(settings, JWT_SECRET_KEY=SECRET.decode(), JWT_ISSUER=ISSUER)
    async with AsyncExitStack() as stack:
        apis = [
            await stack.enter_async_context(running_api_process(environ, tmp_path / name)) for name in ("one", "other")
        ]
        yield [api.url for api in apis]


@pytest.mark.thorough
async def test_fifty_first_sights_at_two_processes_make_one_user(two_processes: list[str], database_pool: None) -> None:
    for _ in range(3):
        subject = new_subject()
        tokens = [token_of(subject, name=f"N{n}") for n in range(50)]
        async with httpx.AsyncClient(timeout=30) as http:
            answers = await asyncio.gather(
                *(http.get(f"{two_processes[n % 2]}/me", headers=bearer(token)) for n, token in enumerate(tokens))
            )
        assert len({good(answer)["id"] for answer in answers}) == 1
        rows = await database.fetch("SELECT id, name FROM users WHERE subject = $1", subject)
        assert [(str(row["id"]), row["name"]) for row in rows] == [(good(answers[0])["id"], good(answers[0])["name"])]
        entries = "SELECT count(*) FROM audit_log WHERE \"user\" = $1 AND action = 'account.created'"
        assert await database.fetchval(entries, rows[0]["id"]) == 1


async def test_keys_of_a_file_are_bound_to_their_algorithms(settings: Settings, migrated: None, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [public_jwk(OTHER_RSA), public_jwk(RSA, kid="a", use="sig"), public_jwk(EC)]}))
    environ = environ_of(settings, JWT_JWKS_FILE=str(file), JWT_ISSUER=ISSUER)
    claims = claims_of(new_subject())
    rsa_header, ec_header = {"alg": "RS256", "kid": "b"}, {"alg": "ES256"}
    async with running_api_process(environ, tmp_path / "log") as api, httpx.AsyncClient(base_url=api.url) as http:
        users = [
            good(await http.get("/me", headers=bearer(compact(header, claims, sign))))
            for header, sign in ((rsa_header, rs256()), (rsa_header, rs256(OTHER_RSA)), (ec_header, es256()))
        ]
        assert users[0] == users[1] == users[2]
        first = await answer_to(http, "nothing of the kind")
        public = pem(RSA)
        for name, header, sign in (
            ("public key as a secret", {"alg": "HS256"}, hs256(public)),
            ("the same without its last line break", {"alg": "HS256"}, hs256(public.rstrip())),
            ("modulus as a secret", {"alg": "HS256"}, hs256(public_jwk(RSA)["n"].encode())),
            ("JWK as a secret", {"alg": "HS256"}, hs256(json.dumps(public_jwk(RSA)).encode())),
            ("file as a secret", {"alg": "HS256"}, hs256(file.read_bytes())),
            ("our secret", {"alg": "HS256"}, hs256()),
            ("none", {"alg": "none"}, NEVER),
            ("RSA as EC", ec_header, rs256()),
            ("EC as RSA", rsa_header, es256()),
            (
                "PSS",
                {"alg": "PS256"},
                lambda m: RSA.sign(m, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
            ),
            ("RS512", {"alg": "RS512"}, lambda m: RSA.sign(m, padding.PKCS1v15(), hashes.SHA512())),
            ("EC of zeros", ec_header, lambda _: bytes(64)),
            ("EC of nothing", ec_header, NEVER),
            ("EC in DER", ec_header, lambda m: EC.sign(m, ec.ECDSA(hashes.SHA256()))),
            ("RSA of nothing", rsa_header, NEVER),
            ("another RSA key, embedded", {**rsa_header, "jwk": public_jwk(ANOTHER)}, rs256(ANOTHER)),
            ("another RSA key, by its kid", {"alg": "RS256", "kid": "a"}, rs256(ANOTHER)),
        ):
            assert await answer_to(http, compact(header, claims, sign)) == first, name


ANOTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


# -------------------------------------------------------------------------------------------- settings


def refusal(settings: Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        create_app(settings)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_start_is_refused_where_name_and_key_do_not_go_together(settings: Settings, tmp_path: Path) -> None:
    def told(**changes: Any) -> str:
        return refusal(msgspec.structs.replace(settings, **changes))

    file = tmp_path / "keys.json"
    assert told(jwt_issuer=None) == "JWT_ISSUER: not set, but JWT_SECRET_KEY is"
    assert told(jwt_issuer=None, jwt_secret_key=None, jwt_jwks_file=file) == "JWT_ISSUER: not set, but JWT_JWKS_FILE is"
    assert told(jwt_secret_key=None).startswith("JWT_SECRET_KEY: not set, nor JWT_JWKS_FILE, but JWT_ISSUER is")
    assert told(jwt_jwks_file=file).startswith("JWT_JWKS_FILE: set, and so is JWT_SECRET_KEY")
    assert told(jwt_secret_key=pem(RSA)) == "JWT_SECRET_KEY: is a key pair's or a certificate, not a secret"
    assert open_issuer(msgspec.structs.replace(settings, jwt_issuer=None, jwt_secret_key=None)) is None


def jwks(*keys: Any) -> str:
    return json.dumps({"keys": list(keys)})


WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ('{"keys": [], "keys": []}', "is not JSON"),
        ("[]", "is no JWK Set"),
        ("{}", "is no JWK Set"),
        ('{"keys": {}}', "is no JWK Set"),
        ('{"keys": ["x"]}', "is no JWK Set"),
        (jwks(), "has no key for RS256"),
        (jwks({}), "has no key for RS256"),
        (jwks(public_jwk(WEAK)), "has no key for RS256"),
        (jwks(public_jwk(P384)), "has no key for RS256"),
        (jwks(public_jwk(RSA, alg="RS512")), "has no key for RS256"),
        (jwks(public_jwk(RSA, alg="HS256")), "has no key for RS256"),
        (jwks(public_jwk(RSA, alg=None)), "has no key for RS256"),
        (jwks(public_jwk(EC, alg="RS256")), "has no key for RS256"),
        (jwks(public_jwk(RSA, use="enc")), "has no key for RS256"),
        (jwks(public_jwk(RSA, key_ops=["encrypt"])), "has no key for RS256"),
        (jwks(public_jwk(RSA, n="!")), "has no key for RS256"),
        (jwks(public_jwk(RSA, n=7)), "has no key for RS256"),
        (jwks(public_jwk(RSA, e="AQ")), "has no key for RS256"),
        (jwks({"kty": "RSA"}), "has no key for RS256"),
        (jwks({"kty": "EC", "crv": "P-256"}), "has no key for RS256"),
        (jwks(public_jwk(EC, y=public_jwk(EC)["x"])), "has no key for RS256"),
        (jwks(public_jwk(EC, crv=None)), "has no key for RS256"),
        (jwks(public_jwk(RSA), {"kty": "oct", "k": "AAAA"}), "holds a secret"),
        (jwks(public_jwk(RSA), {"kty": "oct"}), "holds a secret"),
        (jwks(json.loads(str(jwt.algorithms.RSAAlgorithm.to_jwk(RSA)))), "holds a secret"),
        (jwks(json.loads(str(jwt.algorithms.ECAlgorithm.to_jwk(EC)))), "holds a secret"),
        (jwks(*[public_jwk(RSA)] * 17), "has over 16 keys"),
        (jwks(public_jwk(RSA, x5c=["x" * 300_000])), "is over"),
    ],
)
def test_key_file_that_is_of_no_use_stops_the_start(
    settings: Settings, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content)
    told = refusal(msgspec.structs.replace(settings, jwt_secret_key=None, jwt_jwks_file=file))
    assert told.startswith(f"JWT_JWKS_FILE: {file} {said}")


def test_key_file_that_is_not_there_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    changes = {"jwt_secret_key": None, "jwt_jwks_file": tmp_path / "jwks.json"}
    assert refusal(msgspec.structs.replace(settings, **changes)).startswith("JWT_JWKS_FILE: can't read ")


def test_keys_for_other_purposes_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    okp = {"kty": "OKP", "crv": "Ed25519", "x": encode(bytes(32))}
    file.write_text(jwks(okp, public_jwk(P384), public_jwk(WEAK), public_jwk(EC, alg="ES256", key_ops=["verify"])))
    assert {algorithm: len(keys) for algorithm, keys in read_key_file(file).items()} == {"ES256": 1}


@pytest.mark.thorough
async def test_without_an_issuer_no_jwt_is_anybody(settings: Settings, migrated: None, tmp_path: Path) -> None:
    async with (
        running_api_process(environ_of(settings), tmp_path / "log") as api,
        httpx.AsyncClient(base_url=api.url) as http,
    ):
        await answer_to(http, token_of(new_subject()))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"JWT_SECRET_KEY": "x" * 31, "JWT_ISSUER": ISSUER}, "JWT_SECRET_KEY: must be 32 bytes or more"),
        ({"JWT_SECRET_KEY": "x" * 32}, "JWT_ISSUER: not set, but JWT_SECRET_KEY is"),
        ({"JWT_ISSUER": ISSUER}, "JWT_SECRET_KEY: not set, nor JWT_JWKS_FILE, but JWT_ISSUER is"),
    ],
)
async def test_start_ends_with_one_line(
    settings: Settings, migrated: None, tmp_path: Path, environ: dict[str, str], said: str
) -> None:
    with pytest.raises(AssertionError):
        async with running_api_process(environ_of(settings) | environ, tmp_path / "log"):
            pass
    lines = (tmp_path / "log").read_text().strip().splitlines()
    assert [line for line in lines if "JWT_" in line] == lines
    assert len(lines) == 1
    assert lines[0].endswith(said)
