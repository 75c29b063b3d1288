/*-------------------------------------------------------------------------
 *
 * handled_together.c
 *	  Handling subscribed records in one subtransaction.
 *
 * A subtransaction for each record is there for the one that fails.  It costs
 * each of the others a transaction id, and an SQL function its plans, which
 * PostgreSQL keeps no longer than that.  So the records of a batch first go
 * together: if all of them succeed there is nothing to isolate.  Else all is
 * undone, and they are handled again one by one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "handled.h"

/* Handlers that are slower than others needn't go together (ms) */
#define TOGETHER_TIME		50

/* After a failure so many records are handled one by one, then twice as many */
#define ONE_BY_ONE_MIN		100
#define ONE_BY_ONE_MAX		10000

typedef struct Together
{
	Handled    *handled;
	int			n;
	int			current;		/* the one that is being handled */
	HTAB	   *known;			/* the ids that were handled: KnownId */
} Together;

typedef struct KnownId
{
	struct
	{
		Subscription *subscription;
		pg_uuid_t	id;
	}			key;			/* must be first */
	Handled    *handled;
} KnownId;

static HTAB *
make_known(int n)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(((KnownId *) NULL)->key);
	ctl.entrysize = sizeof(KnownId);
	ctl.hcxt = CurrentMemoryContext;
	return hash_create("outbox ids of a batch", n, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* The one with the same id that is handled already; else this one is the first */
static Handled *
earlier_copy(HTAB *known, Handled *handled)
{
	KnownId		id = {.key = {.subscription = handled->subscription,.id = handled->id}};
	KnownId    *entry;
	bool		found;

	if (!handled->has_id || handled->fate == HANDLED_BEFORE)
		return NULL;
	entry = hash_search(known, &id.key, HASH_ENTER, &found);
	if (!found)
		entry->handled = handled;
	return found ? entry->handled : NULL;
}

/* What handle_one does of subscribed.c, but nobody catches what it raises */
static void
handle_in(HTAB *known, Handled *handled)
{
	const Handled *copy = earlier_copy(known, handled);

	if (copy != NULL)
	{
		handled->fate = HANDLED_BEFORE;
		handled->reply = copy->reply;
	}
	if (handled->fate != HANDLED_BEFORE)
	{
		memset(&handled->outcome, 0, sizeof(HandlerOutcome));
		handled_call_in(handled, &handled->outcome);
		handled->outcome.value = NULL;
		handled->fate = HANDLED_NOW;
	}
	else if (handled->reply != NULL && handled->subscription->reply_topic != NULL)
		reply_send(handled);
}

static void
together_body(void *state, HandlerOutcome *outcome)
{
	Together   *together = state;
	TimestampTz begun = GetCurrentTimestamp();
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "outbox handler call",
												  ALLOCSET_DEFAULT_SIZES);

	together->known = make_known(together->n);
	MemoryContextSwitchTo(context);
	for (; together->current < together->n; together->current++)
	{
		Handled    *handled = &together->handled[together->current];

		if (together->current > 0 &&
			(handler_transaction_is_full() ||
			 TimestampDifferenceExceeds(begun, GetCurrentTimestamp(), TOGETHER_TIME)))
			break;
		if (handled->is_void)
			continue;
		handler_check_constraints();
		handle_in(together->known, handled);
		handler_drop_leftovers();
		MemoryContextReset(context);
	}
}

/* Has one of them failed lately?  Then these are of those handled one by one. */
static bool
have_failed(Handled *handled, int n)
{
	bool		failed = false;

	for (int i = 0; i < n; i++)
	{
		Subscription *subscription = handled[i].subscription;

		if (subscription->one_by_one == 0)
			continue;
		failed = true;
		if (i < HANDLER_CALLS_MAX)
			subscription->one_by_one--;
	}
	return failed;
}

static void
note_failure(Subscription *subscription)
{
	subscription->last_one_by_one = Min(Max(subscription->last_one_by_one * 2, ONE_BY_ONE_MIN),
										ONE_BY_ONE_MAX);
	subscription->one_by_one = subscription->last_one_by_one;
	subscription->handler.looked_up = 0;
}

int
handled_together(Handled *handled, int n)
{
	Together	together = {.handled = handled,.n = n};
	Handled    *saved;
	HandlerOutcome outcome;

	if (n < 2 || have_failed(handled, n))
		return 0;
	saved = palloc(n * sizeof(Handled));
	memcpy(saved, handled, n * sizeof(Handled));
	handler_isolate(together_body, &together, &outcome);
	if (outcome.verdict == HANDLER_DONE)
	{
		for (int i = 0; i < together.current; i++)
			handled[i].subscription->last_one_by_one = 0;
		return together.current;
	}

	/* or the end of the subtransaction, after the last of them, failed */
	note_failure(handled[Min(together.current, n - 1)].subscription);
	memcpy(handled, saved, n * sizeof(Handled));
	return 0;
}
