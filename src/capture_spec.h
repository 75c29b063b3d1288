/*-------------------------------------------------------------------------
 *
 * capture_spec.h
 *	  What the arguments of a capture trigger ask for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CAPTURE_SPEC_H
#define OUTBOX_CAPTURE_SPEC_H

#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

/* A column of the payload */
typedef struct CaptureColumn
{
	AttrNumber	attnum;
	char	   *column;			/* its name in the table */
	char	   *json_name;
} CaptureColumn;

/* The arguments of a trigger, as found on its table */
typedef struct CaptureArguments
{
	char	   *topic;
	char	   *key;			/* name of the key column, NULL for none */
	AttrNumber	key_attnum;
	List	   *columns;		/* of CaptureColumn; never NIL unless the table has none */
	bool		all_columns;	/* none were named */
	Jsonb	   *headers;		/* NULL for none */
	bool		delete_as_tombstone;
	bool		numbers_as_text;
} CaptureArguments;

/* Raises ERROR unless messages can be captured from such a relation */
extern void capture_check_table(Relation table);

/*
 * Understands the arguments of a trigger on a table, or raises ERROR.
 * Everything is allocated in the current memory context.
 */
extern CaptureArguments *capture_arguments(Relation table, int nargs, char **args);

#endif							/* OUTBOX_CAPTURE_SPEC_H */
