"""JWTs of an external issuer, such as Supabase: whether one is genuine, and what it says of whom.

The algorithm is that of the configured key, never one that the token chooses; nothing that a token points to is ever
fetched. Whatever is wrong with a token, the answer is the same `Unauthenticated`, but for one that was good and is not
any more. When that is, the database's clock says (`credentials.recognize`).
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

from server.credentials import Claims
from server.errors import Unauthenticated
from server.sealing import errors as sealing_errors
from server.sealing import strict_json
from server.settings import Settings, SettingsError

MAX_SUBJECT_CHARACTERS = 255

# Each is tried in turn, so that there must not be many; an issuer that changes its key publishes two for a while.
MAX_KEYS = 16
MAX_KEY_FILE_BYTES = 256 * 1024
MIN_RSA_BITS = 2048
_PRIVATE_PARTS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

# The last moment that a time of Python's can tell: an `exp` beyond it means never.
_LAST_SECOND = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())

_JWS = jwt.PyJWS()


class Issuer:
    """The one issuer whose tokens count, with the keys that it signs them by: `{"HS256": […]}` or the like."""

    def __init__(self, name: str, audience: str, keys: Mapping[str, list[Any]]) -> None:
        self.name = name
        self._audience = audience
        self._keys = keys

    def verify(self, token: str) -> Claims:
        """What a genuine token for this server says, of whatever time. Raises Unauthenticated for any other."""
        try:
            return self._claims(strict_json.loads(self._signed_payload(token)))
        except sealing_errors.MalformedJSON:
            raise Unauthenticated from None

    def _signed_payload(self, token: str) -> bytes:
        header = _read_header(token)
        algorithm = header.get("alg")
        keys = self._keys.get(algorithm, []) if isinstance(algorithm, str) else []
        for key in keys:
            try:
                payload: bytes = _JWS.decode_complete(token, key, algorithms=[str(algorithm)])["payload"]
            except jwt.PyJWTError:
                continue
            return payload
        raise Unauthenticated

    def _claims(self, claims: Any) -> Claims:
        if not isinstance(claims, dict) or claims.get("iss") != self.name:
            raise Unauthenticated
        subject, audience = claims.get("sub"), claims.get("aud")
        if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
            raise Unauthenticated
        audiences = audience if isinstance(audience, list) else [audience]
        if not all(isinstance(one, str) for one in audiences) or self._audience not in audiences:
            raise Unauthenticated
        expires, not_before, issued_at = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
        if expires is None:
            raise Unauthenticated
        return Claims(
            issuer=self.name,
            subject=subject,
            expires=_time(expires),
            not_before=None if not_before is None else _time(not_before),
            issued_at=None if issued_at is None else _time(issued_at),
            name=_name(claims),
            email=claims.get("email"),
        )


def _name(claims: dict[str, Any]) -> Any:
    """As a token of OpenID Connect has it, or else as one of Supabase, which has it among what its user may change."""
    if "name" in claims:
        return claims["name"]
    metadata = claims.get("user_metadata")
    return metadata.get("name", metadata.get("full_name")) if isinstance(metadata, dict) else None


def _read_header(token: str) -> dict[str, Any]:
    """The protected header; Unauthenticated if it is none, or asks for something that must be understood."""
    segment = token.partition(".")[0]
    try:
        # PyJWT decodes it once more, and is strict about the spelling of all three parts.
        header = strict_json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (sealing_errors.MalformedJSON, ValueError):
        raise Unauthenticated from None
    if not isinstance(header, dict) or header.keys() & {"crit", "b64"}:
        raise Unauthenticated
    # But it takes the padding that some issuers write, and that does not belong there.
    if "=" in token:
        raise Unauthenticated
    return header


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # A bool is an int to Python, and to nobody else.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated
    return min(value, _LAST_SECOND)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(0, seconds), UTC)


def open_issuer(settings: Settings) -> Issuer | None:
    """The issuer that the settings name, if any. Raises SettingsError where name and key don't go together."""
    secret, key_file = settings.jwt_secret_key, settings.jwt_jwks_file
    if secret is not None and key_file is not None:
        raise SettingsError("JWT_JWKS_FILE: set, and so is JWT_SECRET_KEY; an issuer signs in one way")
    if settings.jwt_issuer is None:
        if secret is not None or key_file is not None:
            raise SettingsError(f"JWT_ISSUER: not set, but {'JWT_SECRET_KEY' if secret else 'JWT_JWKS_FILE'} is")
        return None
    if secret is not None:
        return Issuer(settings.jwt_issuer, settings.jwt_audience, {"HS256": [_secret(secret)]})
    if key_file is not None:
        return Issuer(settings.jwt_issuer, settings.jwt_audience, read_key_file(key_file))
    raise SettingsError("JWT_SECRET_KEY: not set, nor JWT_JWKS_FILE, but JWT_ISSUER is")


def _secret(secret: bytes) -> bytes:
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        # Everybody has the public key of an issuer: as a secret it would let everybody sign.
        raise SettingsError("JWT_SECRET_KEY: is a key pair's or a certificate, not a secret") from None
    return secret


def read_key_file(path: Path) -> dict[str, list[Any]]:
    """The usable keys of a JWK Set, by algorithm. Raises SettingsError.

    Usable are RSA keys of 2,048 bits and more for RS256, and keys on P-256 for ES256. Other public keys are passed
    over, as the format asks; what is secret must not be in such a file at all.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"JWT_JWKS_FILE: can't read {path}: {error.strerror}") from None
    if len(raw) > MAX_KEY_FILE_BYTES:
        raise SettingsError(f"JWT_JWKS_FILE: {path} is over {MAX_KEY_FILE_BYTES} bytes")
    try:
        document = strict_json.loads(raw)
    except sealing_errors.MalformedJSON as error:
        raise SettingsError(f"JWT_JWKS_FILE: {path} is not JSON: {error}") from None
    jwks = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(jwks, list) or not all(isinstance(jwk, dict) for jwk in jwks):
        raise SettingsError(f'JWT_JWKS_FILE: {path} is no JWK Set, {{"keys": […]}}')
    if any(jwk.get("kty") == "oct" or jwk.keys() & _PRIVATE_PARTS for jwk in jwks):
        raise SettingsError(f"JWT_JWKS_FILE: {path} holds a secret; it is for public keys alone")
    keys: dict[str, list[Any]] = {}
    for jwk in jwks:
        if (algorithm := _algorithm(jwk)) and (key := _public_key(jwk, algorithm)):
            keys.setdefault(algorithm, []).append(key)
    if not keys:
        raise SettingsError(f"JWT_JWKS_FILE: {path} has no key for RS256 (2,048 bits or more) or ES256")
    if any(len(of_one_kind) > MAX_KEYS for of_one_kind in keys.values()):
        raise SettingsError(f"JWT_JWKS_FILE: {path} has over {MAX_KEYS} keys of a kind")
    return keys


def _algorithm(jwk: dict[str, Any]) -> str | None:
    """The one algorithm that this key is good for, of those that we take."""
    algorithm = "RS256" if jwk.get("kty") == "RSA" else "ES256" if jwk.get("kty") == "EC" else None
    key_ops = jwk.get("key_ops", ["verify"])
    to_verify = jwk.get("use", "sig") == "sig" and isinstance(key_ops, list) and "verify" in key_ops
    on_p256 = jwk.get("kty") != "EC" or jwk.get("crv") == "P-256"
    return algorithm if to_verify and on_p256 and jwk.get("alg", algorithm) == algorithm else None


def _public_key(jwk: dict[str, Any], algorithm: str) -> Any:
    try:
        key = jwt.PyJWK(jwk, algorithm).key
    except (jwt.PyJWTError, binascii.Error, TypeError, ValueError, AttributeError, KeyError):
        return None
    return key if algorithm == "ES256" or key.key_size >= MIN_RSA_BITS else None
