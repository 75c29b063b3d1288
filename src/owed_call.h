/*-------------------------------------------------------------------------
 *
 * owed_call.h
 *	  outbox.handler_call: calls of on_confirmed, on_failed and on_dead that
 *	  are owed, because they failed, or because only a consumer makes them.
 *
 * All of it is called in a transaction that worker_begin began, but for
 * owed_calls_step.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OWED_CALL_H
#define OUTBOX_OWED_CALL_H

#include "outcome_handler.h"
#include "worker.h"

/* A call failed for the first time: it will be tried again */
extern void owed_call_add(const OutcomeCall *call, const char *topic,
						  const HandlerOutcome *outcome);

/* A call can't be made in this transaction: it is made soon, or when it can be */
extern void owed_call_postpone(const OutcomeCall *call, const char *topic, const char *why);

/* Owes the notice of those that have just become DEAD; of store.c, any process */
extern void owed_calls_for_dead(const pg_uuid_t *ids, const bool *changed, int n);

/*
 * Of these messages, those whose result is known and only waits for its
 * handler: outcomes[i] is CONFIRMED or FAILED, else 0.
 */
extern void owed_calls_find(const pg_uuid_t *ids, int n, char *outcomes);

/* There may be others than were known */
extern void owed_calls_distrust(void);

/* When the next one is due, as far as is known; DT_NOEND: never */
extern TimestampTz owed_calls_due(void);

/* Makes one call that is due, in a transaction of its own */
extern void owed_calls_step(Worker *worker);

#endif							/* OUTBOX_OWED_CALL_H */
