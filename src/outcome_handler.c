/*-------------------------------------------------------------------------
 *
 * outcome_handler.c
 *	  on_confirmed, on_failed and on_dead of outbox.set_topic: which there are,
 *	  and calling one of them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "outcome_handler.h"
#include "store.h"
#include "worker.h"

/* As whom the handlers behind a result topic run */
typedef struct ResultRole
{
	const char *result_topic;
	const char *role;
} ResultRole;

static MemoryContext context = NULL;
static OutcomeHandler *handlers = NULL;
static int	nhandlers = 0;
static ResultRole *roles = NULL;	/* by topic; one may have several */
static int	nroles = 0;

static int
compare_handlers(const void *a, const void *b)
{
	const OutcomeHandler *left = a;
	const OutcomeHandler *right = b;
	int			order = strcmp(left->topic, right->topic);

	return order != 0 ? order : (int) left->outcome - (int) right->outcome;
}

static int
compare_roles(const void *a, const void *b)
{
	return strcmp(((const ResultRole *) a)->result_topic,
				  ((const ResultRole *) b)->result_topic);
}

static void
load_handlers(void)
{
	MemoryContext old;
	int			n = (int) store_execute("SELECT c.topic, h.outcome, h.function, c.role,"
										" c.handler_attempts,"
										" (extract(epoch FROM c.handler_timeout) * 1000)::int"
										" FROM outbox.topic_config AS c, LATERAL"
										" (VALUES ('C', c.on_confirmed), ('F', c.on_failed),"
										"  ('D', c.on_dead)) AS h(outcome, function)"
										" WHERE h.function IS NOT NULL", 0, NULL, NULL, NULL);

	old = MemoryContextSwitchTo(context);
	handlers = palloc0(Max(n, 1) * sizeof(OutcomeHandler));
	for (nhandlers = 0; nhandlers < n; nhandlers++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[nhandlers];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		OutcomeHandler *handler = &handlers[nhandlers];
		bool		isnull;

		handler->topic = SPI_getvalue(tuple, desc, 1);
		handler->outcome = SPI_getvalue(tuple, desc, 2)[0];
		handler->handler.function = SPI_getvalue(tuple, desc, 3);
		handler->handler.role_name = SPI_getvalue(tuple, desc, 4);
		handler->max_attempts = DatumGetInt32(SPI_getbinval(tuple, desc, 5, &isnull));
		handler->handler.timeout = DatumGetInt32(SPI_getbinval(tuple, desc, 6, &isnull));
	}
	MemoryContextSwitchTo(old);
	qsort(handlers, nhandlers, sizeof(OutcomeHandler), compare_handlers);
}

static void
load_roles(void)
{
	MemoryContext old;
	int			n = (int) store_execute("SELECT DISTINCT r.result_topic, c.role"
										" FROM outbox.topic_config AS c, LATERAL"
										" (SELECT c.result_topic UNION"
										"  SELECT f.result_topic FROM outbox.former_result_topic AS f"
										"  WHERE f.topic = c.topic) AS r(result_topic)"
										" WHERE r.result_topic IS NOT NULL AND"
										"  coalesce(c.on_confirmed, c.on_failed) IS NOT NULL",
										0, NULL, NULL, NULL);

	old = MemoryContextSwitchTo(context);
	roles = palloc(Max(n, 1) * sizeof(ResultRole));
	for (nroles = 0; nroles < n; nroles++)
	{
		roles[nroles].result_topic = SPI_getvalue(SPI_tuptable->vals[nroles],
												  SPI_tuptable->tupdesc, 1);
		roles[nroles].role = SPI_getvalue(SPI_tuptable->vals[nroles],
										  SPI_tuptable->tupdesc, 2);
	}
	MemoryContextSwitchTo(old);
	qsort(roles, nroles, sizeof(ResultRole), compare_roles);
}

void
outcome_handlers_load(void)
{
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "outbox handlers",
										ALLOCSET_SMALL_SIZES);
	nhandlers = nroles = 0;
	MemoryContextReset(context);
	load_handlers();
	load_roles();
}

bool
outcome_handlers_exist(void)
{
	return nhandlers > 0;
}

OutcomeHandler *
outcome_handler_find(const char *topic, MessageStatus outcome)
{
	OutcomeHandler key = {.topic = topic, .outcome = outcome};

	return nhandlers == 0 ? NULL :
		bsearch(&key, handlers, nhandlers, sizeof(OutcomeHandler), compare_handlers);
}

const char *
outcome_handlers_role(const char *result_topic)
{
	const char *role = NULL;

	for (int i = 0; i < nroles; i++)
	{
		if (strcmp(roles[i].result_topic, result_topic) != 0)
			continue;
		if (role != NULL)
			return "";
		role = roles[i].role;
	}
	return role;
}

/* ---------------------------------------------------------------------
 * A call
 * --------------------------------------------------------------------- */

/* The message as the view shows it */
static bool
fetch_message(const pg_uuid_t *id, Datum *message)
{
	static const Oid types[] = {UUIDOID};
	const int	segments[] = {message_id_segment(id), OUTBOX_SEGMENT_KEPT};
	Datum		values[1] = {UUIDPGetDatum(id)};
	bool		isnull;

	for (int i = 0; i < lengthof(segments); i++)
	{
		if (store_fetch_one(psprintf("SELECT ROW(l.id, l.topic, l.key,"
									 " outbox.payload_text(l.payload), l.payload, l.headers,"
									 " CASE l.status WHEN 'N' THEN 'NEW' WHEN 'S' THEN 'SENT'"
									 "  WHEN 'C' THEN 'CONFIRMED' WHEN 'F' THEN 'FAILED'"
									 "  WHEN 'D' THEN 'DEAD' END::outbox.message_status,"
									 " l.attempts, l.result, l.error,"
									 " outbox.message_time(l.id), l.updated_at)::outbox.message"
									 " FROM %s AS l WHERE l.id = $1",
									 store_segment_name(segments[i])),
							1, types, values, NULL, &isnull, message))
			return true;
	}
	return false;
}

static bool
change_status(const OutcomeCall *call)
{
	StatusChange change = {.to = call->handler->outcome,.from = "NSD"};

	change.results = &call->result;
	change.errors = &call->error;
	return store_change_status(&call->id, 1, &change, NULL) > 0;
}

static void
call_body(void *state, HandlerOutcome *outcome)
{
	OutcomeCall *call = state;
	Handler    *handler = &call->handler->handler;
	int			level = worker_settings_begin();
	bool		found;
	Datum		message = (Datum) 0;

	call->was_final = call->change && !change_status(call);
	found = !call->was_final && fetch_message(&call->id, &message);
	worker_settings_end(level);
	if (!found)
		return;
	handler_invoke(handler, message, outcome);
	if (call->alone)
		handler_fire_deferred(handler);
}

void
outcome_call(OutcomeCall *call, HandlerOutcome *outcome)
{
	handler_check_constraints();
	handler_isolate(call_body, call, outcome);
	if (outcome->verdict != HANDLER_DONE)
		call->handler->handler.looked_up = 0;
}
