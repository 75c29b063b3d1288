/*-------------------------------------------------------------------------
 *
 * result_apply.c
 *	  What results do to the messages they are about.
 *
 * A batch is applied set-wise.  The results of one message form a group; the
 * first of them that counts for the message takes effect, if none did before,
 * and the others are compared with what the message has become.
 *
 * Where the outcome has a handler, message by message, in the order of arrival,
 * each with its call.  If the handler fails, the result is known all the same:
 * it waits in outbox.handler_call and takes effect with the next call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "capture.h"
#include "outcome_handler.h"
#include "owed_call.h"
#include "relation.h"
#include "result_apply.h"
#include "result_route.h"
#include "store.h"

/* The results of one message */
typedef struct ResultGroup
{
	pg_uuid_t	id;
	Received **results;	/* in the order of arrival */
	int			nresults;
	Received   *effective;		/* the one to apply; NULL: none */
	OutcomeHandler *handler;	/* to be called with it, NULL: none */
	bool		applied;		/* or will be, with a call that is owed */
} ResultGroup;

static ResultGroup *make_groups(Received *received, int n, int *ngroups);
static void find_owed(const ResultGroup *groups, int ngroups, MessageState *states);
static void choose_handlers(ResultGroup *groups, int ngroups, const MessageState *states,
							int *ncalls);
static void call_handlers(ResultGroup *groups, int ngroups, int ncalls, bool alone,
						  int *confirmed, int *failed);
static const char *postponed(Handler *handler, const Handler *scope, int ncalled,
							 TimestampTz begun);
static void owe_call(ResultGroup *group, const char *why);
static void call_handler(ResultGroup *group, bool alone, int *confirmed, int *failed);
static void read_states(const ResultGroup *groups, int ngroups, MessageState *states);
static bool choose_effective(ResultGroup *groups, int ngroups, const MessageState *states);
static void lock_messages(const ResultGroup *groups, int ngroups);
static int	lock_in_segment(int segment, const pg_uuid_t *ids, int n);
static int	change_messages(ResultGroup *groups, int ngroups, const MessageState *states,
							MessageStatus to);
static void read_again(const ResultGroup *groups, int ngroups, MessageState *states);
static void count_group(const ResultGroup *group, const MessageState *state);
static bool counts_for(const Received *received, const MessageState *state);

void
results_apply(Received *received, int n, bool alone, int *confirmed, int *failed)
{
	int			ngroups;
	int			ncalls = 0;
	ResultGroup *groups = make_groups(received, n, &ngroups);
	MessageState *states = palloc0(Max(ngroups, 1) * sizeof(MessageState));
	bool		mixed;

	read_states(groups, ngroups, states);
	if (outcome_handlers_exist())
		find_owed(groups, ngroups, states);
	mixed = choose_effective(groups, ngroups, states);
	if (outcome_handlers_exist())
		choose_handlers(groups, ngroups, states, &ncalls);

	/*
	 * A statement locks messages in the order of their ids, as the
	 * publisher's marks do.  Several statements after each other would not.
	 */
	if (mixed || ncalls > 0)
		lock_messages(groups, ngroups);
	*confirmed += change_messages(groups, ngroups, states, STATUS_CONFIRMED);
	*failed += change_messages(groups, ngroups, states, STATUS_FAILED);
	if (ncalls > 0)
		call_handlers(groups, ngroups, ncalls, alone, confirmed, failed);

	read_again(groups, ngroups, states);
	for (int i = 0; i < ngroups; i++)
		count_group(&groups[i], &states[i]);
	for (int i = 0; i < n; i++)
	{
		if (received_is_void(&received[i]))
			continue;
		if (received[i].problem != NULL)
			received[i].partition->now.counts.bad++;
		partition_applied(received[i].partition, &received[i].place);
	}
}

/* By message, then by arrival, which is the order in the array */
static int
compare_received(const void *a, const void *b)
{
	const Received *left = *(Received *const *) a;
	const Received *right = *(Received *const *) b;
	int			order = memcmp(&left->result.id, &right->result.id, UUID_LEN);

	if (order != 0)
		return order;
	return left < right ? -1 : left > right;
}

static ResultGroup *
make_groups(Received *received, int n, int *ngroups)
{
	Received  **sorted = palloc(Max(n, 1) * sizeof(Received *));
	ResultGroup *groups = palloc0(Max(n, 1) * sizeof(ResultGroup));
	ResultGroup *group = NULL;
	int			nsorted = 0;

	for (int i = 0; i < n; i++)
	{
		if (received[i].problem == NULL && !received_is_void(&received[i]))
			sorted[nsorted++] = &received[i];
	}
	qsort(sorted, nsorted, sizeof(Received *), compare_received);

	*ngroups = 0;
	for (int i = 0; i < nsorted; i++)
	{
		if (group == NULL ||
			memcmp(&group->id, &sorted[i]->result.id, UUID_LEN) != 0)
		{
			group = &groups[(*ngroups)++];
			group->id = sorted[i]->result.id;
			group->results = &sorted[i];
		}
		group->nresults++;
	}
	return groups;
}

/* An id that names no segment is none of ours */
static bool
may_exist(const pg_uuid_t *id)
{
	return message_id_segment(id) < OUTBOX_SEGMENTS;
}

static void
read_states(const ResultGroup *groups, int ngroups, MessageState *states)
{
	pg_uuid_t  *ids = palloc(Max(ngroups, 1) * sizeof(pg_uuid_t));
	int		   *places = palloc(Max(ngroups, 1) * sizeof(int));
	MessageState *found;
	int			n = 0;

	for (int i = 0; i < ngroups; i++)
	{
		if (!may_exist(&groups[i].id))
			continue;
		ids[n] = groups[i].id;
		places[n++] = i;
	}
	found = palloc0(Max(n, 1) * sizeof(MessageState));
	store_read_states(ids, n, found);
	for (int i = 0; i < n; i++)
		states[places[i]] = found[i];
}

static bool
is_final(MessageStatus status)
{
	return status == STATUS_CONFIRMED || status == STATUS_FAILED;
}

/* Does the result count for its message at all? */
static bool
counts_for(const Received *received, const MessageState *state)
{
	return state->found &&
		route_counts(state->topic, received->partition->row.topic, &received->result.id);
}

/* True if there are both kinds of outcome among the effective results */
static bool
choose_effective(ResultGroup *groups, int ngroups, const MessageState *states)
{
	bool		any_confirmed = false;
	bool		any_failed = false;

	for (int i = 0; i < ngroups; i++)
	{
		ResultGroup *group = &groups[i];

		if (!states[i].found || is_final(states[i].status))
			continue;
		for (int j = 0; j < group->nresults && group->effective == NULL; j++)
		{
			if (counts_for(group->results[j], &states[i]))
				group->effective = group->results[j];
		}
		if (group->effective == NULL)
			continue;
		if (group->effective->result.outcome == STATUS_CONFIRMED)
			any_confirmed = true;
		else
			any_failed = true;
	}
	return any_confirmed && any_failed;
}

/* Locks the messages about to be changed, in the order in which store.c changes them */
static void
lock_messages(const ResultGroup *groups, int ngroups)
{
	pg_uuid_t  *ids = palloc(ngroups * sizeof(pg_uuid_t));
	int			n = 0;
	int			locked = 0;
	int			end;

	for (int i = 0; i < ngroups; i++)
	{
		if (groups[i].effective != NULL)
			ids[n++] = groups[i].id;
	}
	for (int start = 0; start < n; start = end)
	{
		int			segment = message_id_segment(&ids[start]);

		for (end = start + 1; end < n && message_id_segment(&ids[end]) == segment;)
			end++;
		locked += lock_in_segment(segment, ids + start, end - start);
	}
	if (locked < n)
		(void) lock_in_segment(OUTBOX_SEGMENT_KEPT, ids, n);
}

static int
lock_in_segment(int segment, const pg_uuid_t *ids, int n)
{
	static const Oid types[] = {UUIDARRAYOID};
	Datum		values[1] = {store_id_array(ids, n)};

	return (int) store_execute(psprintf("SELECT FROM %s WHERE id = ANY ($1)"
										" ORDER BY id FOR NO KEY UPDATE",
										store_segment_name(segment)),
							   1, types, values, NULL);
}

/* Applies the effective results of one kind; returns how many it changed */
static int
change_messages(ResultGroup *groups, int ngroups, const MessageState *states,
				MessageStatus to)
{
	StatusChange change = {.to = to,.from = "NSD"};
	pg_uuid_t  *ids = palloc(Max(ngroups, 1) * sizeof(pg_uuid_t));
	const char **values = palloc(Max(ngroups, 1) * sizeof(char *));
	const char **errors = palloc(Max(ngroups, 1) * sizeof(char *));
	ItemPointerData *places = palloc(Max(ngroups, 1) * sizeof(ItemPointerData));
	bool	   *hit = palloc0(Max(ngroups, 1) * sizeof(bool));
	int			n = 0;
	int			changed;

	for (int i = 0; i < ngroups; i++)
	{
		const MessageResult *result;

		if (groups[i].effective == NULL || groups[i].handler != NULL ||
			groups[i].effective->result.outcome != to)
			continue;
		result = &groups[i].effective->result;
		ids[n] = groups[i].id;
		places[n] = states[i].place;
		values[n] = text_to_database(result->value);
		errors[n] = result->error ? text_to_database(result->error) : NULL;
		n++;
	}
	if (n == 0)
		return 0;

	change.results = values;
	change.errors = errors;
	change.places = places;
	changed = store_change_status(ids, n, &change, hit);

	n = 0;
	for (int i = 0; i < ngroups; i++)
	{
		if (groups[i].effective != NULL && groups[i].handler == NULL &&
			groups[i].effective->result.outcome == to)
			groups[i].applied = hit[n++];
	}
	return changed;
}

/* What became of messages that somebody else was quicker to change */
static void
read_again(const ResultGroup *groups, int ngroups, MessageState *states)
{
	for (int i = 0; i < ngroups; i++)
	{
		if (groups[i].effective == NULL || groups[i].applied)
			continue;
		store_read_states(&groups[i].id, 1, &states[i]);
		if (states[i].found && !is_final(states[i].status))
			elog(ERROR, "a result did not change message status \"%c\"",
				 states[i].status);
	}
}

static void
count_group(const ResultGroup *group, const MessageState *state)
{
	MessageStatus status = group->applied ? group->effective->result.outcome :
		state->status;

	for (int i = 0; i < group->nresults; i++)
	{
		Received   *received = group->results[i];
		RecordCounts *counts = &received->partition->now.counts;

		if (group->applied && received == group->effective)
			counts->applied++;
		else if (!counts_for(received, state))
			counts->unknown++;
		else if (received->result.outcome == status)
			counts->repeated++;
		else
			counts->contrary++;
	}
}

/* ---------------------------------------------------------------------
 * Handlers
 * --------------------------------------------------------------------- */

/* A result that waits for its handler is as good as applied */
static void
find_owed(const ResultGroup *groups, int ngroups, MessageState *states)
{
	pg_uuid_t  *ids = palloc(Max(ngroups, 1) * sizeof(pg_uuid_t));
	char	   *outcomes = palloc(Max(ngroups, 1));

	for (int i = 0; i < ngroups; i++)
		ids[i] = groups[i].id;
	owed_calls_find(ids, ngroups, outcomes);
	for (int i = 0; i < ngroups; i++)
	{
		if (outcomes[i] != 0 && states[i].found)
			states[i].status = outcomes[i];
	}
}

static void
choose_handlers(ResultGroup *groups, int ngroups, const MessageState *states, int *ncalls)
{
	*ncalls = 0;
	for (int i = 0; i < ngroups; i++)
	{
		if (groups[i].effective == NULL)
			continue;
		groups[i].handler = outcome_handler_find(states[i].topic,
												 groups[i].effective->result.outcome);
		if (groups[i].handler != NULL)
			(*ncalls)++;
	}
}

static int
compare_arrival(const void *a, const void *b)
{
	const Received *left = (*(ResultGroup *const *) a)->effective;
	const Received *right = (*(ResultGroup *const *) b)->effective;

	return left < right ? -1 : left > right;
}

/*
 * NULL, or why the call can't be made in this transaction.  The batch was cut
 * so that all are of one role, and not too many; but the configuration may have
 * changed since.
 */
static const char *
postponed(Handler *handler, const Handler *scope, int ncalled, TimestampTz begun)
{
	const char *trouble = handler_ready(handler, outbox_type_oid("message"));

	if (trouble != NULL)
		return trouble;
	if ((scope != NULL && handler->role != scope->role) || ncalled == HANDLER_CALLS_MAX ||
		(ncalled > 0 && TimestampDifferenceExceeds(begun, GetCurrentTimestamp(),
												   HANDLER_TRANSACTION_TIME)))
		return "it has to wait for its turn";
	return NULL;
}

static void
call_handlers(ResultGroup *groups, int ngroups, int ncalls, bool alone,
			  int *confirmed, int *failed)
{
	ResultGroup **calls = palloc(ncalls * sizeof(ResultGroup *));
	TimestampTz begun = GetCurrentTimestamp();
	const Handler *scope = NULL;
	int			n = 0;
	int			ncalled = 0;

	for (int i = 0; i < ngroups; i++)
	{
		if (groups[i].handler != NULL)
			calls[n++] = &groups[i];
	}
	qsort(calls, ncalls, sizeof(ResultGroup *), compare_arrival);
	for (int i = 0; i < ncalls; i++)
	{
		Handler    *handler = &calls[i]->handler->handler;
		const char *why = postponed(handler, scope, ncalled, begun);

		if (why != NULL)
		{
			owe_call(calls[i], why);
			continue;
		}
		if (scope == NULL)
			handler_scope_begin(handler);
		scope = handler;
		ncalled++;
		call_handler(calls[i], alone, confirmed, failed);
	}
	if (scope == NULL)
		return;
	if (!alone)
		handler_fire_deferred(scope);
	handler_scope_end();
}

static OutcomeCall
make_outcome_call(const ResultGroup *group, bool alone)
{
	const MessageResult *result = &group->effective->result;
	OutcomeCall call = {.handler = group->handler,.id = group->id,.change = true,
	.alone = alone};

	call.result = text_to_database(result->value);
	call.error = result->error ? text_to_database(result->error) : NULL;
	return call;
}

static void
call_handler(ResultGroup *group, bool alone, int *confirmed, int *failed)
{
	OutcomeCall call = make_outcome_call(group, alone);
	HandlerOutcome outcome;

	outcome_call(&call, &outcome);
	group->applied = !call.was_final || outcome.verdict != HANDLER_DONE;
	if (outcome.verdict != HANDLER_DONE)
	{
		int			level = worker_settings_begin();

		owed_call_add(&call, group->handler->topic, &outcome);
		worker_settings_end(level);
	}
	else if (call.was_final)
		return;
	else if (group->handler->outcome == STATUS_CONFIRMED)
		(*confirmed)++;
	else
		(*failed)++;
}

/* The handler can't be called now, through no fault of the call */
static void
owe_call(ResultGroup *group, const char *why)
{
	OutcomeCall call = make_outcome_call(group, true);
	int			level = worker_settings_begin();

	owed_call_postpone(&call, group->handler->topic, why);
	worker_settings_end(level);
	group->applied = true;
}
