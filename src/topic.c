/*-------------------------------------------------------------------------
 *
 * topic.c
 *	  The names of topics, and who may send to them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_authid.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "capture.h"
#include "compat.h"
#include "outbox.h"
#include "relation.h"

/* Columns of outbox.topic_grant */
enum
{
	Anum_grant_pattern = 1,
	Anum_grant_role,
	Anum_grant_privilege
};

/* What this session knows of a role's right to send or subscribe to a topic */
typedef struct GrantKey
{
	Oid			role;
	bool		subscribe;
	char		topic[OUTBOX_TOPIC_LEN + 1];
} GrantKey;

typedef struct GrantEntry
{
	GrantKey	key;
	uint64		generation;		/* the answer holds while it is the current one */
	bool		allowed;
} GrantEntry;

/* Beyond this many answers a session forgets them and starts again */
#define MAX_GRANT_ENTRIES	1024

uint64		topic_grants_generation = 1;

static HTAB *grant_cache = NULL;
static Oid	grant_table = InvalidOid;

static void grants_relation_invalidated(Datum arg, Oid relid);
static void grants_syscache_invalidated(Datum arg, int cacheid, uint32 hashvalue);
static GrantEntry *grant_cache_enter(const char *topic, Oid role, bool subscribe);
static bool pattern_matches(const char *pattern, const char *topic);
static bool grant_applies(TupleTableSlot *slot, const char *topic, Oid role,
						  bool subscribe);
static bool grants_allow(const char *topic, Oid role, bool subscribe);
static bool topic_allows(const char *topic, Oid role, bool subscribe);

/* ---------------------------------------------------------------------
 * Names
 * --------------------------------------------------------------------- */

const char *
topic_name_problem(const char *topic, int len)
{
	if (len == 0)
		return "It is empty.";
	if (len > OUTBOX_TOPIC_LEN)
		return "It is longer than 249 characters.";
	if (strcmp(topic, ".") == 0 || strcmp(topic, "..") == 0)
		return "It is \".\" or \"..\".";
	for (int i = 0; i < len; i++)
	{
		char		c = topic[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			  (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'))
			return "It has a character other than a-z, A-Z, 0-9, \".\", \"_\" and \"-\".";
	}
	return NULL;
}

void
topic_name_check(const char *topic)
{
	const char *problem = topic_name_problem(topic, strlen(topic));

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid topic name \"%s\"", topic),
				 errdetail_internal("%s", problem)));
}

PG_FUNCTION_INFO_V1(outbox_check_topic_name);

/* Raises invalid_name unless Kafka takes it as a topic's name */
Datum
outbox_check_topic_name(PG_FUNCTION_ARGS)
{
	topic_name_check(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* ---------------------------------------------------------------------
 * Grants
 * --------------------------------------------------------------------- */

void
topic_grants_init(void)
{
	CacheRegisterRelcacheCallback(grants_relation_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHOID, grants_syscache_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, grants_syscache_invalidated, (Datum) 0);
}

/* outbox.forget_grants was called, or the extension made anew */
static void
grants_relation_invalidated(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == grant_table)
	{
		grant_table = InvalidOid;
		topic_grants_generation++;
	}
}

static void
grants_syscache_invalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	topic_grants_generation++;
}

/* A new entry is of no generation */
static GrantEntry *
grant_cache_enter(const char *topic, Oid role, bool subscribe)
{
	GrantEntry *entry;
	GrantKey	key;
	bool		found;

	if (grant_cache != NULL && hash_get_num_entries(grant_cache) >= MAX_GRANT_ENTRIES)
	{
		hash_destroy(grant_cache);
		grant_cache = NULL;
	}
	if (grant_cache == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(GrantKey);
		ctl.entrysize = sizeof(GrantEntry);
		ctl.hcxt = CacheMemoryContext;
		grant_cache = hash_create("outbox grants", 32, &ctl,
								  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	memset(&key, 0, sizeof(key));
	key.role = role;
	key.subscribe = subscribe;
	strlcpy(key.topic, topic, sizeof(key.topic));
	entry = hash_search(grant_cache, &key, HASH_ENTER, &found);
	if (!found)
		entry->generation = 0;
	return entry;
}

/* A pattern that ends in * is a prefix */
static bool
pattern_matches(const char *pattern, const char *topic)
{
	size_t		len = strlen(pattern);

	if (len > 0 && pattern[len - 1] == '*')
		return strncmp(pattern, topic, len - 1) == 0;
	return strcmp(pattern, topic) == 0;
}

static bool
grant_applies(TupleTableSlot *slot, const char *topic, Oid role, bool subscribe)
{
	bool		isnull;			/* the columns are NOT NULL */
	char	   *pattern = TextDatumGetCString(slot_getattr(slot, Anum_grant_pattern, &isnull));
	char	   *grantee = TextDatumGetCString(slot_getattr(slot, Anum_grant_role, &isnull));
	char	   *privilege = TextDatumGetCString(slot_getattr(slot, Anum_grant_privilege, &isnull));
	Oid			grantee_oid;

	if (strcmp(privilege, subscribe ? "subscribe" : "send") != 0 || !pattern_matches(pattern, topic))
		return false;
	grantee_oid = get_role_oid(grantee, true);
	return OidIsValid(grantee_oid) && has_privs_of_role(role, grantee_oid);
}

/*
 * Reads the grants as they are now, and not as this transaction's snapshot
 * shows them: what was revoked since must not be allowed.  Whoever asks need
 * not be allowed to read the table.
 */
static bool
grants_allow(const char *topic, Oid role, bool subscribe)
{
	Relation	table = table_open(outbox_relation_oid("topic_grant"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	Snapshot	snapshot;
	TableScanDesc scan;
	bool		found = false;

	/* From here on, news of a change is noticed */
	grant_table = RelationGetRelid(table);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(table, snapshot, 0, NULL);
	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
		found = grant_applies(slot, topic, role, subscribe);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(table, AccessShareLock);
	return found;
}

/*
 * If news of a change comes while the grants are being read, the answer is
 * entered under a generation that is gone already, and not used again.
 */
static bool
topic_allows(const char *topic, Oid role, bool subscribe)
{
	GrantEntry *entry;
	uint64		generation = topic_grants_generation;
	bool		allowed;

	entry = grant_cache_enter(topic, role, subscribe);
	if (entry->generation == generation)
		return entry->allowed;

	allowed = superuser_arg(role) || grants_allow(topic, role, subscribe);

	entry = grant_cache_enter(topic, role, subscribe);
	entry->allowed = allowed;
	entry->generation = generation;
	return allowed;
}

bool
topic_may_send(const char *topic, Oid role)
{
	return topic_allows(topic, role, false);
}

bool
topic_may_subscribe(const char *topic, Oid role)
{
	return topic_allows(topic, role, true);
}

void
topic_check_send(const char *topic, Oid role)
{
	char	   *name;

	if (likely(topic_may_send(topic, role)))
		return;

	name = GetUserNameFromId(role, false);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for topic \"%s\"", topic),
			 errdetail("Role \"%s\" may not send to it.", name),
			 topic_grant_hint(topic, name)));
}

int
topic_grant_hint(const char *topic, const char *role)
{
	return errhint("A superuser can allow it: SELECT outbox.grant_topic('%s', %s, 'send').",
				   topic, quote_literal_cstr(quote_identifier(role)));
}

PG_FUNCTION_INFO_V1(outbox_forget_grants);

/* Makes every session read the grants again, once this transaction commits */
Datum
outbox_forget_grants(PG_FUNCTION_ARGS)
{
	CacheInvalidateRelcacheByRelid(outbox_relation_oid("topic_grant"));
	PG_RETURN_VOID();
}
