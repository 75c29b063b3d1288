/*-------------------------------------------------------------------------
 *
 * handler.h
 *	  Calling an SQL function on behalf of a role, in a consumer.
 *
 * The worker is a superuser and the function may be anybody's.  It runs as the
 * role, with the settings a session of that role would have, in a
 * subtransaction of its own, and can leave nothing behind in the session.
 *
 * The calls of one transaction are all of one role, between
 * handler_scope_begin and handler_scope_end.  Between these two the worker
 * runs statements of its own only under worker_settings_begin.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HANDLER_H
#define OUTBOX_HANDLER_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "storage/lock.h"

/* How many calls there may be in a transaction: each is a subtransaction */
#define HANDLER_CALLS_MAX	50

/* A transaction begins no other call after so long (ms) */
#define HANDLER_TRANSACTION_TIME	500

/* A function f(a composite) */
typedef struct Handler
{
	const char *function;		/* qualified name, quoted as need be */
	const char *role_name;
	int			timeout;		/* milliseconds a call may take */

	LocalTransactionId ready_in;	/* the transaction handler_ready was called in */

	/* what handler_resolve has found out */
	Oid			role;
	Oid			oid;
	Oid			result_type;
	FmgrInfo	flinfo;
	uint64		looked_up;		/* flinfo is of the scope with this number; 0: none */
} Handler;

typedef enum HandlerVerdict
{
	HANDLER_DONE,
	HANDLER_RAISED,				/* it refused */
	HANDLER_TRANSIENT			/* it may succeed another time */
} HandlerVerdict;

/* What became of a call */
typedef struct HandlerOutcome
{
	HandlerVerdict verdict;
	const char *value;			/* what it returned, NULL for nothing */
	bool		value_is_json;
	char		sqlstate[6];	/* of an error, like the next */
	const char *error;			/* shortened */
} HandlerOutcome;

/* Once a process, before all else */
extern void handlers_init(void);

/*
 * Looks up the role and the function, which takes one argument of the given
 * type.  Returns NULL, or why it can't be called, palloc'd.  Needs a
 * transaction.
 */
extern const char *handler_resolve(Handler *handler, Oid argument_type);

/*
 * Makes DROP of what was resolved wait for the end of this transaction.  It has
 * to be looked up again then: it may have been dropped before.
 */
extern void handler_lock(const Handler *handler);

/* Both, once a transaction: NULL, or why the function can't be called in it */
extern const char *handler_ready(Handler *handler, Oid argument_type);

/* NULL if a function may be a handler, else what is wrong with it, palloc'd */
extern const char *handler_function_problem(Oid function, Oid argument_type);

/*
 * Applies the role's settings to what follows; needs SPI.  The handlers called
 * until handler_scope_end must be of the same role.
 */
extern void handler_scope_begin(const Handler *handler);

/*
 * Back to the worker's settings, but for how the transaction will be committed;
 * removes the temporary tables they made
 */
extern void handler_scope_end(void);

/* Drops what the calls so far have left in the session: temporary tables, cursors */
extern void handler_drop_leftovers(void);

/* Has this transaction as many subtransactions as it should have? */
extern bool handler_transaction_is_full(void);

/* To be called when the transaction has ended, however it did */
extern void handler_tidy_session(void);

/*
 * Runs body in a subtransaction.  If it raises, all that it did is undone and
 * the outcome says so; otherwise the outcome is as the body left it, DONE at
 * first.  What the body allocates is freed, but for the outcome's error.
 */
typedef void (*HandlerBody) (void *state, HandlerOutcome *outcome);
extern void handler_isolate(HandlerBody body, void *state, HandlerOutcome *outcome);

/* The outcome of a call that failed like that */
extern void handler_note_error(HandlerOutcome *outcome, const ErrorData *error);

/* To be called in a body: calls the function, sets the outcome's value */
extern void handler_invoke(Handler *handler, Datum argument, HandlerOutcome *outcome);

/*
 * What SET CONSTRAINTS said can't be taken back but with the transaction: before
 * a call, this raises if an earlier one in it has said so.
 */
extern void handler_check_constraints(void);

/* SET CONSTRAINTS was used in this session */
extern void handler_constraints_set(void);

/*
 * Checks deferred constraints and fires deferred triggers as the role, until
 * there are none: not even those that these left behind, which would be fired
 * at commit, as the worker.  In a subtransaction, nothing must have been
 * deferred before that.
 */
extern void handler_fire_deferred(const Handler *handler);

/* When to try again after so many failures (1 or more) of a call */
extern TimestampTz handler_retry_at(int attempts);

#endif							/* OUTBOX_HANDLER_H */
