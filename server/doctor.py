"""Is all well, and if not, what is to be done? For `secureblogs doctor`."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import asyncpg
from arq.connections import ArqRedis
from redis.exceptions import ResponseError

from server import database, jobs, piccolo_app
from server.channels import UNAVAILABLE as REDIS_UNAVAILABLE
from server.sealing.drafts import worker_key_id
from server.sealing.keys import encryption_pair
from server.settings import Settings

LEAST_POSTGRES = 18
PENDING_TOO_LONG_S = 60


class Finding(NamedTuple):
    subject: str
    what: str
    advice: str = ""
    """What to do; empty if all is well."""

    def __str__(self) -> str:
        mark = "!!" if self.advice else "ok"
        return f"{mark}  {self.subject:<12} {self.what}" + (f"\n    {'':<12} → {self.advice}" if self.advice else "")


async def examine(settings: Settings) -> list[Finding]:
    """Every check that can be made; what rests on something that is away is left out."""
    findings = [examine_settings(settings)]
    findings += [finding async for finding in examine_postgres(settings)]
    findings += [finding async for finding in examine_redis(settings)]
    return findings


def examine_settings(settings: Settings) -> Finding:
    private, public = settings.worker_private_keys, settings.worker_public_key
    if public is None:
        return Finding("settings", "WORKER_PUBLIC_KEY is not set", "`secureblogs secrets FOLDER` makes a pair of keys")
    if private and encryption_pair(private[0]).public != public:
        halves = "WORKER_PUBLIC_KEY is not the other half of the first of WORKER_PRIVATE_KEYS"
        return Finding(
            "settings", halves, "set the two halves of one pair, and list older private halves after the first"
        )
    if not settings.rate_limits:
        return Finding("settings", "RATE_LIMITS is off", "leave it out, but for tests and benchmarks")
    return Finding("settings", "in order")


async def examine_postgres(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with database.open_pool(settings.database_url or "", 1):
            version = int(await database.fetchval("SHOW server_version_num")) // 10_000
            old = version < LEAST_POSTGRES
            yield Finding("Postgres", f"version {version}", f"use version {LEAST_POSTGRES} or later" if old else "")
            yield await examine_migrations()
            yield await examine_posts()
    except asyncpg.UndefinedTableError:
        return  # the finding on migrations has said it
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        yield Finding("Postgres", str(error), "correct DATABASE_URL")
    except database.UNAVAILABLE as error:
        yield Finding("Postgres", f"does not answer: {error}", "see that it runs, and that DATABASE_URL is right")


async def examine_migrations() -> Finding:
    missing = set(piccolo_app.migration_ids()) - await database.applied_migrations()
    if missing:
        return Finding("migrations", f"{len(missing)} not applied", "run `secureblogs migrate`")
    return Finding("migrations", "all applied")


async def examine_posts() -> Finding:
    row = await database.fetchrow(
        "SELECT count(*) FILTER (WHERE status = 'failed') AS failed, count(*) FILTER (WHERE status = 'pending' AND"
        " created_at < now() - make_interval(secs => $1)) AS waiting FROM posts WHERE status <> 'sealed'",
        PENDING_TOO_LONG_S,
    )
    failed, waiting = (row["failed"], row["waiting"]) if row else (0, 0)
    if waiting:
        return Finding("posts", f"{waiting} wait for longer than a minute", "see what the workers log")
    if failed:
        advice = "ask their authors, or mend the cause and run `secureblogs requeue --failed`"
        return Finding("posts", f"{failed} could not be sealed", advice)
    return Finding("posts", "none is waiting")


async def examine_redis(settings: Settings) -> AsyncIterator[Finding]:
    redis = await jobs.create_pool(settings.redis_url or "")
    try:
        facts = await redis.info("server")
        name, version = facts.get("server_name", "redis"), facts.get("valkey_version", facts.get("redis_version"))
        yield Finding("Redis", f"{name} {version}", await advice_on_redis(redis))
        yield await examine_workers(settings, redis)
    except REDIS_UNAVAILABLE as error:
        yield Finding("Redis", f"does not answer: {error}", "see that it runs, and that REDIS_URL is right")
    finally:
        await redis.aclose(close_connection_pool=True)


async def advice_on_redis(redis: ArqRedis) -> str:
    try:
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy")
    except ResponseError:  # many hosts forbid CONFIG
        return ""
    return "" if policy == "noeviction" else f"set maxmemory-policy to noeviction: {policy} throws jobs away"


async def examine_workers(settings: Settings, redis: ArqRedis) -> Finding:
    workers = await jobs.live_workers(redis)
    if not workers:
        return Finding("workers", "none has a heartbeat", "start one with `secureblogs worker`")
    key_id = worker_key_id(settings.worker_public_key).hex() if settings.worker_public_key else None
    strangers = [worker for worker in workers if key_id not in worker.worker_key_ids]
    if key_id and strangers:
        return Finding(
            "workers",
            f"{strangers[0].hostname} process {strangers[0].pid} has not the key that drafts are sealed to",
            "put the private half of WORKER_PUBLIC_KEY into its WORKER_PRIVATE_KEYS",
        )
    return Finding("workers", f"{len(workers)} at work")
