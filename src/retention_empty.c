/*-------------------------------------------------------------------------
 *
 * retention_empty.c
 *	  TRUNCATE without waiting.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/transam.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox.h"
#include "relation.h"
#include "retention.h"

/* Its name without the schema */
static Oid
table_oid(const char *table)
{
	return outbox_relation_oid(strchr(table, '.') + 1);
}

bool
retention_exclude_writers(const char *table)
{
	return ConditionalLockRelationOid(table_oid(table), ShareLock);
}

/*
 * The TOAST table is looked at by who has locked its table, so it is free, but
 * autovacuum takes it by itself.
 */
bool
retention_exclude_all(const char *table)
{
	Oid			relid = table_oid(table);
	Relation	relation;
	Oid			toast;

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return false;
	relation = table_open(relid, NoLock);
	toast = relation->rd_rel->reltoastrelid;
	table_close(relation, NoLock);
	if (!OidIsValid(toast) || ConditionalLockRelationOid(toast, AccessExclusiveLock))
		return true;
	UnlockRelationOid(relid, AccessExclusiveLock);
	return false;
}

/*
 * The horizon is that of VACUUM: it counts the snapshots of this database, of
 * replication slots, and of standbys that tell theirs.  This process must have
 * none, not even of the catalogs.
 */
bool
retention_seen_by_all(const char *table, TransactionId before)
{
	Relation	relation = table_open(table_oid(table), AccessShareLock);
	TransactionId horizon;

	InvalidateCatalogSnapshot();
	horizon = GetOldestNonRemovableTransactionId(relation);
	table_close(relation, AccessShareLock);
	return TransactionIdFollowsOrEquals(horizon, before);
}
