/*-------------------------------------------------------------------------
 *
 * subscribed.c
 *	  Handling the records of subscriptions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "handled.h"
#include "message_id.h"
#include "safe_text.h"
#include "subscribed.h"

#define HEADER_ID	"id"

void
handled_init(Handled *handled, Subscription *subscription, const BridgeRecord *record)
{
	memset(handled, 0, sizeof(Handled));
	handled->subscription = subscription;
	handled->record = record;
	handled->context = CurrentMemoryContext;
	for (int i = 0; i < record->nheaders && !handled->has_id; i++)
		handled->has_id = strcmp(record->headers[i].name, HEADER_ID) == 0 &&
			uuid_parse(record->headers[i].value, record->headers[i].len, &handled->id);
}

/* ---------------------------------------------------------------------
 * One record
 * --------------------------------------------------------------------- */

/* The reply goes with the effects */
void
handled_call_in(Handled *handled, HandlerOutcome *outcome)
{
	Handler    *handler = &handled->subscription->handler;

	handler_invoke(handler, handled->argument ? handled->argument : record_datum(handled),
				   outcome);
	if (handled->alone)
		handler_fire_deferred(handler);
	if (handled->subscription->reply_topic != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(handled->context);

		handled->reply = reply_value(outcome);
		MemoryContextSwitchTo(old);
		reply_send(handled);
	}
}

static void
call_body(void *state, HandlerOutcome *outcome)
{
	handled_call_in((Handled *) state, outcome);
}

/* Without a call, or after one that failed: only the reply can fail now */
static void
reply_body(void *state, HandlerOutcome *outcome)
{
	reply_send((Handled *) state);
}

/* It failed for a passing reason */
static HandledFate
fate_for_now(Handled *handled)
{
	return ++handled->attempts >= handled->subscription->max_attempts ?
		HANDLED_DEAD : HANDLED_NOT;
}

/* A record whose reply can't be sent is dead */
static void
send_reply(Handled *handled)
{
	HandlerOutcome outcome;

	handler_isolate(reply_body, handled, &outcome);
	if (outcome.verdict == HANDLER_DONE)
		return;
	handled->outcome = outcome;
	handled->fate = outcome.verdict == HANDLER_TRANSIENT ?
		fate_for_now(handled) : HANDLED_DEAD;
}

void
handled_repeat(Handled *handled)
{
	if (handled->reply != NULL && handled->subscription->reply_topic != NULL)
		send_reply(handled);
}

void
handled_call(Handled *handled)
{
	Subscription *subscription = handled->subscription;

	handler_check_constraints();
	handler_isolate(call_body, handled, &handled->outcome);
	if (handled->outcome.verdict != HANDLER_DONE)
		subscription->handler.looked_up = 0;
	switch (handled->outcome.verdict)
	{
		case HANDLER_DONE:
			handled->fate = HANDLED_NOW;
			break;
		case HANDLER_RAISED:
			handled->fate = subscription->reply_topic ? HANDLED_NOW : HANDLED_DEAD;
			if (handled->fate == HANDLED_NOW)
			{
				handled->reply = reply_value(&handled->outcome);
				send_reply(handled);
			}
			break;
		case HANDLER_TRANSIENT:
			handled->fate = fate_for_now(handled);
			break;
	}
}

/* ---------------------------------------------------------------------
 * Records in order
 * --------------------------------------------------------------------- */

/* A copy of it was dealt with earlier in this very transaction */
static const Handled *
earlier_copy(const Handled *handled, const Handled *first)
{
	for (const Handled *other = first; handled->has_id && other < handled; other++)
	{
		if (other->fate == HANDLED_NOW && other->has_id &&
			other->subscription == handled->subscription &&
			memcmp(&other->id, &handled->id, UUID_LEN) == 0)
			return other;
	}
	return NULL;
}

static void
handle_one(Handled *handled, const Handled *first)
{
	const Handled *copy = handled->fate == HANDLED_BEFORE ? NULL :
		earlier_copy(handled, first);

	if (copy != NULL)
	{
		handled->fate = HANDLED_BEFORE;
		handled->reply = copy->reply;
	}
	if (handled->fate == HANDLED_BEFORE)
		handled_repeat(handled);
	else
		handled_call(handled);
}

/* What became of it, for its partition */
static void
note_progress(Worker *worker, Received *received, const Handled *handled)
{
	Partition  *partition = received->partition;
	RecordCounts *counts = &partition->now.counts;

	switch (handled->fate)
	{
		case HANDLED_NOT:
			partition_retry(partition, worker->bridge, received->place.offset,
							handled->attempts, handled->outcome.error);
			return;
		case HANDLED_NOW:
			if (handled->outcome.verdict == HANDLER_DONE)
				counts->applied++;
			else
				counts->failed++;
			break;
		case HANDLED_BEFORE:
			counts->repeated++;
			break;
		case HANDLED_DEAD:
			counts->dead++;
			break;
	}
	if (handled->fate != HANDLED_BEFORE && handled->outcome.error != NULL)
		safe_text_printf(counts->last_error, sizeof(counts->last_error),
						 "offset " INT64_FORMAT ": %s: %s", received->place.offset, handled->outcome.sqlstate,
						 handled->outcome.error);
	partition_applied(partition, &received->place);
}

/* How often this record's handler has failed already */
static int
attempts_before(const Received *received)
{
	const OffsetState *state = &received->partition->now.state;

	return state->next == received->place.offset ? state->retry_attempts : 0;
}

/* The configuration may have changed since the batch was put together */
static bool
can_be_handled(const Subscription *subscription, const Handled *first, int nbefore)
{
	return subscription != NULL && subscription->trouble == NULL &&
		(nbefore == 0 ||
		 subscription->handler.role == first->subscription->handler.role);
}

/*
 * Makes the array of what can be handled; where gives each one's place among
 * the received.  The partitions of the others begin again when they can be.
 */
static Handled *
make_handled(Worker *worker, Received *received, int n, int *nhandled, int *where)
{
	Handled    *handled = palloc(n * sizeof(Handled));

	*nhandled = 0;
	for (int i = 0; i < n; i++)
	{
		Subscription *subscription = subscription_find(received[i].partition->row.topic);

		if (received_is_void(&received[i]))
			continue;
		if ((*nhandled == 0 || handled[*nhandled - 1].subscription != subscription) &&
			can_be_handled(subscription, handled, *nhandled))
		{
			handler_lock(&subscription->handler);
			subscriptions_check();
		}
		if (!can_be_handled(subscription, handled, *nhandled))
		{
			partition_unload(received[i].partition, worker->bridge);
			continue;
		}
		where[*nhandled] = i;
		handled_init(&handled[(*nhandled)++], subscription, &received[i].record);
	}
	return handled;
}

/*
 * Handles the records one by one; returns how many were dealt with.  What one
 * of them does to its partition may make later ones void.
 */
static int
handle_singly(Worker *worker, Received *received, Handled *handled, int n, const int *where)
{
	TimestampTz begun = GetCurrentTimestamp();

	for (int i = 0; i < n; i++)
	{
		Received   *one = &received[where[i]];

		if (i == HANDLER_CALLS_MAX ||
			(i > 0 && TimestampDifferenceExceeds(begun, GetCurrentTimestamp(),
												 HANDLER_TRANSACTION_TIME)))
			return i;
		handled[i].is_void = received_is_void(one);
		if (handled[i].is_void)
			continue;
		handle_one(&handled[i], handled);
		note_progress(worker, one, &handled[i]);
	}
	return n;
}

/* All at once if that goes well, and else nothing */
static int
handle_together(Worker *worker, Received *received, Handled *handled, int n, const int *where)
{
	int			done;

	for (int i = 0; i < n; i++)
		handled[i].is_void = received_is_void(&received[where[i]]);
	done = handled_together(handled, n);
	for (int i = 0; i < done; i++)
	{
		if (!handled[i].is_void)
			note_progress(worker, &received[where[i]], &handled[i]);
	}
	return done;
}

int
subscribed_handle(Worker *worker, Received *received, int n, bool alone)
{
	int		   *where = palloc(Max(n, 1) * sizeof(int));
	int			nhandled;
	int			done = 0;
	Handled    *handled;

	subscriptions_check();
	handled = make_handled(worker, received, n, &nhandled, where);
	if (nhandled == 0)
		return n;
	inbox_find(handled, nhandled);
	message_floor_ensure();
	for (int i = 0; i < nhandled; i++)
	{
		handled[i].alone = alone;
		handled[i].attempts = attempts_before(&received[where[i]]);
	}
	handler_scope_begin(&handled[0].subscription->handler);
	if (!alone)
		done = handle_together(worker, received, handled, nhandled, where);
	if (done == 0)
		done = handle_singly(worker, received, handled, nhandled, where);
	if (!alone)
		handler_fire_deferred(&handled[0].subscription->handler);
	handler_scope_end();

	inbox_add(handled, done);
	for (int i = 0; i < done; i++)
	{
		if (handled[i].fate == HANDLED_DEAD)
			dead_record_keep(&handled[i]);
	}
	return done < nhandled ? where[done] : n;
}

void
subscribed_failed(Worker *worker, Received *received, const ErrorData *error)
{
	Subscription *subscription = subscription_find(received->partition->row.topic);
	Handled		handled;

	if (received_is_void(received) || subscription == NULL)
		return;
	handled_init(&handled, subscription, &received->record);
	handled.attempts = attempts_before(received);
	handler_note_error(&handled.outcome, error);
	handled.outcome.verdict = HANDLER_TRANSIENT;
	handled.fate = fate_for_now(&handled);
	note_progress(worker, received, &handled);
	if (handled.fate == HANDLED_DEAD)
		dead_record_keep(&handled);
}
