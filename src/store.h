/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The tables of schema outbox: every statement the workers run.
 *
 * Called in a transaction that worker_begin began (SPI connected), unless a
 * comment says otherwise.  Raises ERROR as the statements do.  Results live
 * in the current memory context of the caller.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include "storage/itemptr.h"

#include "message_id.h"
#include "outbox.h"

/*
 * Runs a statement with an active snapshot of its own, its plan kept for the
 * process.  sql must be a string constant.  nulls as for SPI.  Returns
 * SPI_processed; rows are in SPI_tuptable until the next call.
 */
extern uint64 store_execute(const char *sql, int nargs, const Oid *types,
							const Datum *values, const char *nulls);

/* Runs a query in the active snapshot, if there is one */
extern uint64 store_query(const char *sql, int nargs, const Oid *types, const Datum *values);

/* The first column of the only row; false if there is none.  Copied. */
extern bool store_fetch_one(const char *sql, int nargs, const Oid *types,
							const Datum *values, const char *nulls,
							bool *isnull, Datum *result);

/* The same for a query without parameters of a timestamptz; DT_NOEND if there is none */
extern TimestampTz store_fetch_time(const char *sql);

/* ids as a value of type uuid[], palloc'd */
extern Datum store_id_array(const pg_uuid_t *ids, int n);

/* Name of the partition of the log that holds a segment, palloc'd */
extern char *store_segment_name(int segment);

/* ---- changes of status: the one place that makes them ---- */

/* True if the status table of the design has this transition */
extern bool status_may_become(MessageStatus from, MessageStatus to);

/* What a change of status writes beside the status */
typedef struct StatusChange
{
	MessageStatus to;
	const char *from;			/* the states it may come from, as letters */
	bool		count_attempt;	/* an acknowledged publish */
	const char *const *results; /* one a message, or NULL: unchanged */
	const char *const *errors;	/* one a message, or NULL: unchanged */
	const ItemPointerData *places;	/* where each row was read, invalid if not
									 * in its own segment; or NULL */
	void		(*meanwhile) (void *arg);	/* called between rows now and then, for
											 * what can't wait for all; or NULL */
	void	   *meanwhile_arg;
} StatusChange;

/*
 * Changes the status of the messages whose status is one of change->from, in
 * the segment their id names or else in segment -1; ids ascending.  Locks
 * them in this order, those in segment -1 last.  Returns how many; changed (if
 * not NULL) tells which.  Asserts that the status table knows each transition.
 */
extern int	store_change_status(const pg_uuid_t *ids, int n,
								const StatusChange *change, bool *changed);

/* A message's state, for those that a change didn't hit */
typedef struct MessageState
{
	bool		found;
	MessageStatus status;
	int			attempts;
	TimestampTz updated_at;
	char	   *topic;
	ItemPointerData place;		/* as in StatusChange */
} MessageState;

extern void store_read_states(const pg_uuid_t *ids, int n, MessageState *states);

#endif							/* OUTBOX_STORE_H */
