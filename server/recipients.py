"""Whom a group's posts are sealed to: the active, usable keys of its members, but for those who are disabled.

Nobody may be slipped in or left out by what happens at the same time, so whoever changes that locks the group first and
raises its `recipients_version`. Whoever relies on it does one of two things:

* It locks the group FOR SHARE and then reads in a new statement.
* It writes in a statement that locks the group FOR SHARE and goes on only if the version that it locked is the one
  that it, or a statement before it, has read. Else something came in between, which is rare, and it starts again in the
  first way. That is a few round trips less, and nobody is locked out meanwhile.
"""

from uuid import UUID

from server import database

# Of the group $1; k is a key, m the membership of who has it.
RECIPIENTS = (
    'FROM user_group_association m JOIN users u ON u.id = m."user" AND u.disabled_at IS NULL'
    ' JOIN user_keys k ON k."user" = m."user" WHERE m."group" = $1 AND NOT k.is_revoked AND k.unusable_at IS NULL'
)


def of(group: str) -> str:
    """SQL, from `FROM` on: the keys k that a post of `group`, an expression, is sealed to."""
    return RECIPIENTS.replace("$1", group)


async def change_group(group_id: UUID) -> None:
    """Before its members are changed, in the same transaction: locks the group until that ends."""
    await database.execute("UPDATE user_groups SET recipients_version = recipients_version + 1 WHERE id = $1", group_id)


async def change_groups_of(user_id: UUID) -> None:
    """The like for all groups of a user, before its keys are changed, or whether it is disabled."""
    rows = await database.fetch(
        'SELECT id FROM user_groups WHERE id IN (SELECT "group" FROM user_group_association WHERE "user" = $1)'
        " ORDER BY id FOR NO KEY UPDATE",
        user_id,
    )
    # A statement of its own, which sees what was locked. One that locks and updates would come back to what a row was
    # before it waited for it, and somebody who waits there in turn waits for the lock that it has by then.
    await database.execute(
        "UPDATE user_groups SET recipients_version = recipients_version + 1 WHERE id = ANY($1)",
        [row["id"] for row in rows],
    )
