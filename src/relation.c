/*-------------------------------------------------------------------------
 *
 * relation.c
 *	  The extension's own tables: finding them, and inserting without an
 *	  executor.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/pg_list.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "outbox.h"
#include "relation.h"

/* What this session remembers of a segment of the log */
typedef struct LogSegment
{
	Oid			table;			/* InvalidOid: nothing */
	Oid			pkey;
	bool		other_indexes;
} LogSegment;

/* Segment -1 comes first */
static LogSegment log_segments[OUTBOX_SEGMENTS + 1];

static void relation_invalidated(Datum arg, Oid relid);
static bool has_other_indexes(Relation table);
static void insert_into_others(OpenTable *open, TupleTableSlot *slot);
static void insert_into_index(OpenTable *open, Relation index, TupleTableSlot *slot,
							  EState *estate);

void
relation_init(void)
{
	CacheRegisterRelcacheCallback(relation_invalidated, (Datum) 0);
}

static void
relation_invalidated(Datum arg, Oid relid)
{
	for (int i = 0; i < lengthof(log_segments); i++)
	{
		if (relid == InvalidOid || relid == log_segments[i].table)
			log_segments[i].table = InvalidOid;
	}
}

Oid
outbox_relation_oid(const char *name)
{
	Oid			namespace = get_namespace_oid(OUTBOX_SCHEMA, true);
	Oid			relid = InvalidOid;

	if (OidIsValid(namespace))
		relid = get_relname_relid(name, namespace);
	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", OUTBOX_SCHEMA, name),
				 errhint("Is the extension \"%s\" installed in this database?",
						 OUTBOX_EXTENSION)));
	return relid;
}

Oid
outbox_type_oid(const char *name)
{
	Oid			namespace = get_namespace_oid(OUTBOX_SCHEMA, false);
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									   CStringGetDatum(name), ObjectIdGetDatum(namespace));

	if (!OidIsValid(type))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("type \"%s.%s\" does not exist", OUTBOX_SCHEMA, name)));
	return type;
}

/* Sets rd_pkindex on the way */
static bool
has_other_indexes(Relation table)
{
	List	   *indexes = RelationGetIndexList(table);
	int			count = list_length(indexes);

	list_free(indexes);
	if (!OidIsValid(table->rd_pkindex))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s.%s\" has lost its primary key",
						OUTBOX_SCHEMA, RelationGetRelationName(table))));
	return count > 1;
}

void
open_table_by_name(const char *name, LOCKMODE lock, OpenTable *open)
{
	open->table = table_open(outbox_relation_oid(name), lock);
	open->other_indexes = has_other_indexes(open->table);
	open->pkey = index_open(open->table->rd_pkindex, lock);
}

void
log_segment_open(int segment, LOCKMODE lock, OpenTable *open)
{
	LogSegment *known = &log_segments[segment + 1];

	Assert(segment >= OUTBOX_SEGMENT_KEPT && segment < OUTBOX_SEGMENTS);

	/* The lock may bring the news that what is known is wrong */
	if (likely(OidIsValid(known->table)))
	{
		Oid			relid = known->table;

		LockRelationOid(relid, lock);
		if (likely(known->table == relid))
		{
			open->table = table_open(relid, NoLock);
			open->pkey = index_open(known->pkey, lock);
			open->other_indexes = known->other_indexes;
			return;
		}
		UnlockRelationOid(relid, lock);
	}

	if (segment == OUTBOX_SEGMENT_KEPT)
		open_table_by_name("log_kept", lock, open);
	else
		open_table_by_name(psprintf("log_%d", segment), lock, open);

	known->table = RelationGetRelid(open->table);
	known->pkey = RelationGetRelid(open->pkey);
	known->other_indexes = open->other_indexes;
}

void
open_table_close(OpenTable *open)
{
	index_close(open->pkey, NoLock);
	table_close(open->table, NoLock);
}

void
open_table_insert(OpenTable *open, IndexInfo *info, TupleTableSlot *slot)
{
	table_tuple_insert(open->table, slot, GetCurrentCommandId(true), 0, NULL);
	open_table_index(open, info, slot);
}

void
open_table_index(OpenTable *open, IndexInfo *info, TupleTableSlot *slot)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	FormIndexDatum(info, slot, NULL, values, isnull);
	index_insert(open->pkey, values, isnull, &slot->tts_tid, open->table,
				 UNIQUE_CHECK_YES, false, info);
	if (unlikely(open->other_indexes))
		insert_into_others(open, slot);
}

/* Somebody made indexes of their own: they must not miss a row */
static void
insert_into_others(OpenTable *open, TupleTableSlot *slot)
{
	EState	   *estate = CreateExecutorState();
	List	   *indexes = RelationGetIndexList(open->table);
	ListCell   *cell;

	GetPerTupleExprContext(estate)->ecxt_scantuple = slot;
	foreach(cell, indexes)
	{
		Relation	index;

		if (lfirst_oid(cell) == RelationGetRelid(open->pkey))
			continue;
		index = index_open(lfirst_oid(cell), RowExclusiveLock);
		insert_into_index(open, index, slot, estate);
		index_close(index, NoLock);
	}
	list_free(indexes);
	FreeExecutorState(estate);
}

static void
insert_into_index(OpenTable *open, Relation index, TupleTableSlot *slot, EState *estate)
{
	IndexInfo  *info = BuildIndexInfo(index);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	if (!info->ii_ReadyForInserts)
		return;
	if (info->ii_Predicate != NIL &&
		!ExecQual(ExecPrepareQual(info->ii_Predicate, estate),
				  GetPerTupleExprContext(estate)))
		return;
	FormIndexDatum(info, slot, estate, values, isnull);
	index_insert(index, values, isnull, &slot->tts_tid, open->table,
				 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false, info);
	outbox_index_insert_cleanup(index, info);
}
