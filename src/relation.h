/*-------------------------------------------------------------------------
 *
 * relation.h
 *	  The extension's own tables: finding them, and inserting without an
 *	  executor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RELATION_H
#define OUTBOX_RELATION_H

#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"

/* The table of that name in the schema outbox; raises undefined_table */
extern Oid	outbox_relation_oid(const char *name);

/* The type of that name in the schema outbox; raises undefined_object */
extern Oid	outbox_type_oid(const char *name);

/* A table of the extension, with its primary key, both open */
typedef struct OpenTable
{
	Relation	table;
	Relation	pkey;
	bool		other_indexes;	/* has it some that aren't ours? */
} OpenTable;

/*
 * Opens a segment of the log; what it remembers of them makes that cheap.
 * Locks are kept until the end of the transaction.
 */
extern void log_segment_open(int segment, LOCKMODE lock, OpenTable *open);
extern void open_table_by_name(const char *name, LOCKMODE lock, OpenTable *open);
extern void open_table_close(OpenTable *open);

/*
 * Inserts a virtual tuple, and into the indexes.  No trigger fires, nothing is
 * checked.  info describes the primary key.
 */
extern void open_table_insert(OpenTable *open, IndexInfo *info, TupleTableSlot *slot);

/* The latter part alone, for a row version that is in the table by now */
extern void open_table_index(OpenTable *open, IndexInfo *info, TupleTableSlot *slot);

/* Registers the invalidation callback; from _PG_init by log_append_init */
extern void relation_init(void);

#endif							/* OUTBOX_RELATION_H */
