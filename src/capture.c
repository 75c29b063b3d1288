/*-------------------------------------------------------------------------
 *
 * capture.c
 *	  The trigger function that writes a message for each changed row.
 *
 * What a trigger's arguments ask for is found out once in a session and kept
 * until the table, or something it depends on, changes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture.h"
#include "capture_spec.h"
#include "compat.h"
#include "text_output.h"

typedef enum CaptureOp
{
	OP_CREATE,
	OP_UPDATE,
	OP_DELETE
} CaptureOp;

#define CAPTURE_OPS		(OP_DELETE + 1)

static const char op_letters[CAPTURE_OPS] = {'c', 'u', 'd'};

/* All that the trigger has to know for a row, in its own memory context */
typedef struct CaptureSpec
{
	MemoryContext context;
	char	   *topic;
	int			topic_len;
	Oid			owner;			/* of the table */
	uint64		grants_generation;	/* the owner was allowed to send in this one */
	char	   *key_column;		/* NULL: none */
	AttrNumber	key_attnum;
	TextOutput	key_output;
	bool		delete_as_tombstone;
	Jsonb	   *headers;
	JsonRowWriter *row;
} CaptureSpec;

typedef struct CaptureEntry
{
	Oid			trigger;		/* the hash key */
	Oid			table;
	bool		valid;
	CaptureSpec *spec;			/* NULL: none, or not finished */
} CaptureEntry;

/* By the OID of the trigger */
static HTAB *capture_cache = NULL;

static void check_call(FunctionCallInfo fcinfo);
static void capture_cache_create(void);
static void capture_relation_invalidated(Datum arg, Oid relid);
static void capture_cast_invalidated(Datum arg, int cacheid, uint32 hashvalue);
static void capture_cache_sweep(void);
static CaptureSpec *capture_spec(TriggerData *trigdata);
static CaptureSpec *capture_spec_build(Relation table, Trigger *trigger,
									   MemoryContext context);
static JsonRowWriter *capture_row_writer(Relation table, CaptureArguments *arguments,
										 MemoryContext context);
static void capture_row(CaptureSpec *spec, CaptureOp op, TupleTableSlot *row);
static void capture_error_context(void *arg);

PG_FUNCTION_INFO_V1(outbox_capture);

/* AFTER INSERT OR UPDATE OR DELETE ... FOR EACH ROW; see capture_spec.c */
Datum
outbox_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	CaptureSpec *spec;

	check_call(fcinfo);
	spec = capture_spec(trigdata);
	if (unlikely(spec->grants_generation != topic_grants_generation))
	{
		uint64		generation = topic_grants_generation;

		topic_check_send(spec->topic, spec->owner);
		spec->grants_generation = generation;
	}

	if (TRIGGER_FIRED_BY_INSERT(trigdata->tg_event))
		capture_row(spec, OP_CREATE, trigdata->tg_trigslot);
	else if (TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event))
		capture_row(spec, OP_UPDATE, trigdata->tg_newslot);
	else
		capture_row(spec, OP_DELETE, trigdata->tg_trigslot);
	return PointerGetDatum(NULL);
}

static void
check_call(FunctionCallInfo fcinfo)
{
	TriggerEvent event;

	if (unlikely(!CALLED_AS_TRIGGER(fcinfo)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.capture must be called as a trigger")));

	event = ((TriggerData *) fcinfo->context)->tg_event;
	if (unlikely(!TRIGGER_FIRED_AFTER(event) || !TRIGGER_FIRED_FOR_ROW(event)))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("outbox.capture must be fired AFTER and FOR EACH ROW"),
				 errhint("Create the trigger with outbox.attach, or as "
						 "AFTER INSERT OR UPDATE OR DELETE ... FOR EACH ROW.")));
}

/* ---------------------------------------------------------------------
 * What the trigger asks for
 * --------------------------------------------------------------------- */

static void
capture_cache_create(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(CaptureEntry);
	ctl.hcxt = TopMemoryContext;
	capture_cache = hash_create("outbox capture triggers", 32, &ctl,
								HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(capture_relation_invalidated, (Datum) 0);
	CacheRegisterSyscacheCallback(CASTSOURCETARGET, capture_cast_invalidated, (Datum) 0);
}

/* May be called while a spec is in use, so nothing is freed here */
static void
capture_relation_invalidated(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	CaptureEntry *entry;

	hash_seq_init(&status, capture_cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (relid == InvalidOid || relid == entry->table)
			entry->valid = false;
	}
}

/* A new cast to json changes how a column is written */
static void
capture_cast_invalidated(Datum arg, int cacheid, uint32 hashvalue)
{
	capture_relation_invalidated(arg, InvalidOid);
}

/*
 * Forgets the triggers whose tables changed, or are gone.  Their specs may be
 * in use further up, by a cast to json that changes a table: they go with the
 * transaction.
 */
static void
capture_cache_sweep(void)
{
	HASH_SEQ_STATUS status;
	CaptureEntry *entry;

	hash_seq_init(&status, capture_cache);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		if (entry->valid)
			continue;
		if (entry->spec != NULL)
			MemoryContextSetParent(entry->spec->context, TopTransactionContext);
		(void) hash_search(capture_cache, &entry->trigger, HASH_REMOVE, NULL);
	}
}

static CaptureSpec *
capture_spec(TriggerData *trigdata)
{
	Oid			trigger = trigdata->tg_trigger->tgoid;
	MemoryContext context;
	CaptureEntry *entry;
	CaptureSpec *spec;

	if (unlikely(capture_cache == NULL))
		capture_cache_create();
	entry = hash_search(capture_cache, &trigger, HASH_FIND, NULL);
	if (likely(entry != NULL && entry->valid))
		return entry->spec;

	capture_cache_sweep();
	entry = hash_search(capture_cache, &trigger, HASH_ENTER, NULL);
	entry->table = RelationGetRelid(trigdata->tg_relation);
	entry->spec = NULL;
	entry->valid = true;		/* news that come from here on count */

	context = AllocSetContextCreate(CurrentMemoryContext, "outbox capture trigger",
									ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		spec = capture_spec_build(trigdata->tg_relation, trigdata->tg_trigger, context);
	}
	PG_CATCH();
	{
		entry->valid = false;
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSetParent(context, TopMemoryContext);
	entry->spec = spec;
	return spec;
}

static CaptureSpec *
capture_spec_build(Relation table, Trigger *trigger, MemoryContext context)
{
	CaptureSpec *spec;
	CaptureArguments *arguments;
	MemoryContext old = MemoryContextSwitchTo(context);
	ErrorContextCallback callback;

	callback.callback = capture_error_context;
	callback.arg = trigger;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	spec = palloc0(sizeof(CaptureSpec));
	arguments = capture_arguments(table, trigger->tgnargs, trigger->tgargs);
	spec->context = context;
	spec->topic = arguments->topic;
	spec->topic_len = strlen(arguments->topic);
	spec->owner = table->rd_rel->relowner;
	spec->delete_as_tombstone = arguments->delete_as_tombstone;
	spec->headers = arguments->headers;

	spec->key_column = arguments->key;
	spec->key_attnum = arguments->key_attnum;
	if (spec->key_column != NULL)
		text_output_init(&spec->key_output,
						 getBaseType(TupleDescAttr(RelationGetDescr(table),
												   spec->key_attnum - 1)->atttypid),
						 context);
	spec->row = capture_row_writer(table, arguments, context);

	error_context_stack = callback.previous;
	MemoryContextSwitchTo(old);
	return spec;
}

static JsonRowWriter *
capture_row_writer(Relation table, CaptureArguments *arguments, MemoryContext context)
{
	int			ncolumns = list_length(arguments->columns);
	AttrNumber *attnums = palloc(ncolumns * sizeof(AttrNumber));
	char	  **names = palloc(ncolumns * sizeof(char *));

	for (int i = 0; i < ncolumns; i++)
	{
		CaptureColumn *column = list_nth(arguments->columns, i);

		attnums[i] = column->attnum;
		names[i] = column->json_name;
	}
	return json_row_writer(RelationGetDescr(table), ncolumns, attnums, names,
						   arguments->numbers_as_text, context);
}

static void
capture_error_context(void *arg)
{
	Trigger    *trigger = arg;

	errcontext("arguments of trigger \"%s\"", trigger->tgname);
}

/* ---------------------------------------------------------------------
 * A row
 * --------------------------------------------------------------------- */

/* What is allocated here goes with the trigger's call */
static void
capture_row(CaptureSpec *spec, CaptureOp op, TupleTableSlot *row)
{
	NewMessage	message = {0};
	pg_uuid_t	id;

	message.topic = spec->topic;
	message.topic_len = spec->topic_len;
	message.op = op_letters[op];
	message.headers = spec->headers;

	/* The key comes second: a cast to json may use its output for other rows */
	if (op != OP_DELETE || !spec->delete_as_tombstone)
		message.payload = json_row(spec->row, row);
	if (spec->key_column != NULL)
	{
		bool		isnull;
		Datum		key = slot_getattr(row, spec->key_attnum, &isnull);

		if (!isnull)
			message.key = text_output(&spec->key_output, key, &message.key_len);
	}

	if (message.payload == NULL && message.key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg("null value in column \"%s\", the key of a tombstone for topic \"%s\"",
						spec->key_column, spec->topic)));
	log_append(&message, &id);
}
