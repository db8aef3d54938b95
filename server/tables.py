"""Every table. Times are the database's; ids are UUIDv7, made by the database unless a client sends its own.

What Piccolo can't say (partial and multi-column indexes, the trigger that remembers deleted ids)
stands in the migrations.
"""

import uuid

import uuid_utils.compat
from piccolo.columns import JSONB, Array, BigInt, Boolean, Bytea, Date, ForeignKey, Integer, Text, Timestamptz, Varchar
from piccolo.columns import UUID as UUIDColumn
from piccolo.columns.base import OnDelete
from piccolo.columns.defaults.timestamptz import TimestamptzNow
from piccolo.columns.defaults.uuid import UUID7
from piccolo.constraints import Check, Unique
from piccolo.table import Table


class UUIDv7(UUID7):
    """`uuidv7()` in the database; Piccolo's own needs Python 3.14 to make one."""

    def python(self) -> uuid.UUID:
        return uuid_utils.compat.uuid7()


class User(Table, tablename="users"):
    """A local user has email and password; one of an external issuer has (issuer, subject) and neither."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    name = Text()
    email = Text(null=True, default=None)
    email_key = Text(null=True, default=None, unique=True, help_text="NFC(casefold(NFC(trimmed email)))")
    password = Text(null=True, default=None, secret=True, help_text="Argon2id")
    issuer = Text(null=True, default=None)
    subject = Text(null=True, default=None)
    claimed_email = Text(null=True, default=None, help_text="what the issuer says; finds nobody")
    is_admin = Boolean(default=False)
    created_at = Timestamptz(default=TimestamptzNow())
    disabled_at = Timestamptz(null=True, default=None)

    one_identity = Unique(["issuer", "subject"])
    local_or_external = Check(
        "(issuer IS NULL AND subject IS NULL AND email IS NOT NULL AND email_key IS NOT NULL AND password IS NOT NULL)"
        " OR (issuer IS NOT NULL AND subject IS NOT NULL AND email IS NULL AND email_key IS NULL AND password IS NULL)"
    )


class UserToken(Table, tablename="user_tokens"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    token_hash = Bytea(unique=True, secret=True, help_text="SHA-256 of the whole token")
    kind = Varchar(length=16)
    scopes = Array(Text(), default=list)
    label = Text(null=True, default=None)
    created_at = Timestamptz(default=TimestamptzNow())
    expires = Timestamptz(null=True, default=None)
    last_used_at = Timestamptz(null=True, default=None)
    revoked_at = Timestamptz(null=True, default=None)

    known_kind = Check("kind IN ('session', 'api_key')")
    sessions_expire = Check("kind <> 'session' OR expires IS NOT NULL")


class UserKey(Table, tablename="user_keys"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    public_key = Bytea()
    verify_key = Bytea()
    proof = Bytea()
    endorsed_by: "ForeignKey[UserKey]" = ForeignKey("self", null=True, default=None, on_delete=OnDelete.set_null)
    endorsement = Bytea(null=True, default=None)
    label = Text()
    is_revoked = Boolean(default=False)
    created_at = Timestamptz(default=TimestamptzNow())
    revoked_at = Timestamptz(null=True, default=None)
    unusable_at = Timestamptz(null=True, default=None, help_text="when sealing to it failed: skipped from then on")

    once_for_ever = Unique(["user", "public_key"])
    sizes = Check(
        "octet_length(public_key) = 32 AND octet_length(verify_key) = 32 AND octet_length(proof) = 64"
        " AND (endorsement IS NULL OR octet_length(endorsement) = 64)"
    )
    revoked_has_a_time = Check("is_revoked = (revoked_at IS NOT NULL)")


class UserGroup(Table, tablename="user_groups"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    name = Text()
    created_by = ForeignKey(User, null=True, default=None, on_delete=OnDelete.set_null)
    request_mac = Bytea(help_text="tells whether a repeated creation is the same request")
    created_at = Timestamptz(default=TimestamptzNow())
    recipients_version = BigInt(default=0, help_text="raised by each change of its members or of their keys")


class UserGroupAssociation(Table, tablename="user_group_association"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    group = ForeignKey(UserGroup, null=False, on_delete=OnDelete.cascade)
    role = Varchar(length=16)
    created_at = Timestamptz(default=TimestamptzNow())

    once_a_group = Unique(["user", "group"])
    known_role = Check("role IN ('owner', 'member')")


class Post(Table, tablename="posts"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    group = ForeignKey(UserGroup, null=False, on_delete=OnDelete.cascade)
    author = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    status = Varchar(length=16)
    sealed_by = Varchar(length=16)
    draft = Bytea(null=True, default=None, help_text="sealed to the workers; erased by the sealing")
    heading = Bytea(null=True, default=None)
    content = Bytea(null=True, default=None)
    content_hash = Bytea(null=True, default=None)
    commitment = Bytea(null=True, default=None)
    signature = Bytea(null=True, default=None)
    signing_key = ForeignKey(UserKey, null=True, default=None, on_delete=OnDelete.set_null)
    request_mac = Bytea(help_text="tells whether a repeated creation is the same request")
    created_at = Timestamptz(default=TimestamptzNow())
    sealed_at = Timestamptz(null=True, default=None)
    failure = Varchar(length=64, null=True, default=None)

    known_sealer = Check("sealed_by IN ('server', 'author')")
    whole = Check(
        "(status IN ('pending', 'failed') AND draft IS NOT NULL AND heading IS NULL AND content IS NULL"
        " AND content_hash IS NULL AND commitment IS NULL AND sealed_at IS NULL"
        " AND (status = 'failed') = (failure IS NOT NULL))"
        " OR (status = 'sealed' AND draft IS NULL AND heading IS NOT NULL AND content IS NOT NULL"
        " AND octet_length(content_hash) = 32 AND octet_length(commitment) = 32 AND sealed_at IS NOT NULL"
        " AND failure IS NULL)"
    )
    signed_by_author = Check("status <> 'sealed' OR (sealed_by = 'author') = (signature IS NOT NULL)")


class PostKey(Table, tablename="post_keys"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    post = ForeignKey(Post, null=False, on_delete=OnDelete.cascade)
    public_key = ForeignKey(UserKey, null=False, on_delete=OnDelete.cascade)
    encrypted_key = Bytea(help_text="crypto_box_seal(post key): 80 bytes")
    granted_by = ForeignKey(User, null=True, default=None, on_delete=OnDelete.set_null)
    created_at = Timestamptz(default=TimestamptzNow())

    once_a_key = Unique(["public_key", "post"])
    size = Check("octet_length(encrypted_key) = 80")


class ReadPostRequest(Table, tablename="read_post_request"):
    id = UUIDColumn(primary_key=True, default=UUIDv7())
    post = ForeignKey(Post, null=False, on_delete=OnDelete.cascade)
    group = ForeignKey(UserGroup, null=False, on_delete=OnDelete.cascade, help_text="the post's, for lists by group")
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    public_key = ForeignKey(UserKey, null=False, on_delete=OnDelete.cascade)
    status = Varchar(length=16)
    created_at = Timestamptz(default=TimestamptzNow())
    decided_by = ForeignKey(User, null=True, default=None, on_delete=OnDelete.set_null)
    decided_at = Timestamptz(null=True, default=None)

    known_status = Check("status IN ('pending', 'approved', 'denied', 'cancelled', 'returned')")
    decided_has_a_time = Check("(status = 'pending') = (decided_at IS NULL)")


class DeletedId(Table, tablename="deleted_ids"):
    """Ids of deleted posts and groups: a late retry revives nothing. A trigger fills it, cascades included."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    created_at = Timestamptz(default=TimestamptzNow())


class Outbox(Table, tablename="outbox"):
    """Events that were committed and are not yet known to be published; `id` is the event's id."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    channels = Array(Text())
    frame = Text()
    created_at = Timestamptz(default=TimestamptzNow())


class UserDailyUsage(Table, tablename="user_daily_usage"):
    """What a user did on a day of UTC. Workers write it, in batches, from what is counted in Redis."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    user = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    date = Date(default=None)
    requests = BigInt(default=0)
    posts = BigInt(default=0)
    upload_bytes = BigInt(default=0)

    once_a_day = Unique(["user", "date"])
    counts = Check("requests >= 0 AND posts >= 0 AND upload_bytes >= 0")


class AuditEntry(Table, tablename="audit_log"):
    """Who did what. Append-only by a trigger, and without foreign keys: it outlives what it tells of.

    An entry is committed with what it tells of, and gets its place in the chain of hashes shortly after.
    """

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    at = Timestamptz(default=TimestamptzNow())
    actor = UUIDColumn(null=True, default=None, help_text="null: somebody at the machine itself")
    action = Varchar(length=64)
    group = UUIDColumn(null=True, default=None)
    user = UUIDColumn(null=True, default=None, help_text="whom it was done to")
    ids = JSONB(default="{}", help_text="further ids, by name")
    position = BigInt(null=True, default=None, unique=True, help_text="1, 2, 3, … in the chain")
    chain = Bytea(null=True, default=None, help_text="SHA-256 over the chain before and this entry")

    placed_whole = Check("(position IS NULL) = (chain IS NULL) AND (chain IS NULL OR octet_length(chain) = 32)")


class Attachment(Table, tablename="attachments"):
    """A sealed file. Its bytes lie in the object store, its name and its key in the document of its post."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    owner = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    post = ForeignKey(Post, null=True, default=None, on_delete=OnDelete.cascade, help_text="null until attached")
    sealed_by = Varchar(length=16)
    size = BigInt(help_text="of the file itself, in bytes")
    object_key = Text(unique=True)
    draft_key = Bytea(null=True, default=None, help_text="name and key, sealed to the workers; erased by the sealing")
    request_mac = Bytea(help_text="tells whether a repeated upload is the same")
    created_at = Timestamptz(default=TimestamptzNow())

    known_sealer = Check("sealed_by IN ('server', 'author')")
    drafts_are_the_servers = Check("sealed_by = 'server' OR draft_key IS NULL")
    has_a_size = Check("size >= 0")


class DownloadLink(Table, tablename="download_links"):
    """Stays when its file is gone, so that whoever has the link hears that there was one."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    attachment = ForeignKey(Attachment, null=True, default=None, on_delete=OnDelete.set_null)
    token_hash = Bytea(unique=True, secret=True, help_text="SHA-256 of the token in the link")
    created_by = ForeignKey(User, null=False, on_delete=OnDelete.cascade)
    created_at = Timestamptz(default=TimestamptzNow())
    expires = Timestamptz()
    downloads_left = Integer(null=True, default=None, help_text="null where there is no limit")
    revoked_at = Timestamptz(null=True, default=None)

    counts_down = Check("downloads_left >= 0")


class ObjectDeletion(Table, tablename="object_deletions"):
    """Objects that have to go, once it is time: written before an upload begins, and when an attachment is deleted."""

    id = UUIDColumn(primary_key=True, default=UUIDv7())
    object_key = Text(unique=True)
    due_at = Timestamptz()
