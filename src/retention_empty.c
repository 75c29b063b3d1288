/*-------------------------------------------------------------------------
 *
 * retention_empty.c
 *	  Locks without waiting, up to what TRUNCATE needs: the publisher, which
 *	  has messages to carry, must be in nobody's queue.
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
retention_lock(const char *table, LOCKMODE lock)
{
	return ConditionalLockRelationOid(table_oid(table), lock);
}

bool
retention_exclude_writers(const char *table)
{
	return retention_lock(table, ShareLock);
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
	Relation	relation;
	TransactionId horizon;

	if (!retention_lock(table, AccessShareLock))
		return false;
	relation = table_open(table_oid(table), NoLock);
	InvalidateCatalogSnapshot();
	horizon = GetOldestNonRemovableTransactionId(relation);
	table_close(relation, NoLock);
	return TransactionIdFollowsOrEquals(horizon, before);
}
