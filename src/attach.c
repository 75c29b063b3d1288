/*-------------------------------------------------------------------------
 *
 * attach.c
 *	  outbox.attach and outbox.detach: sugar over CREATE and DROP TRIGGER.
 *
 * Both run with the caller's rights and under the caller's search_path, which
 * the condition is written for; what is ours is always named with its schema.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parse_func.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture.h"
#include "capture_spec.h"
#include "compat.h"
#include "outbox.h"
#include "relation.h"

/* Arguments of outbox.attach */
enum
{
	ARG_SOURCE,
	ARG_TOPIC,
	ARG_KEY,
	ARG_EVENTS,
	ARG_COLUMNS,
	ARG_CONDITION,
	ARG_HEADERS,
	ARG_DELETE_AS_TOMBSTONE,
	ARG_NUMBERS_AS_TEXT
};

/* Columns of outbox.topic_config that matter here */
enum
{
	Anum_config_topic = 1,
	Anum_config_result_topic
};

static Relation open_relation(Oid relid);
static List *text_array(FunctionCallInfo fcinfo, int arg, const char *what);
static int	parse_events(List *events);
static List *trigger_arguments(FunctionCallInfo fcinfo);
static char *trigger_name(const char *topic);
static char *create_trigger_command(Relation table, const char *name, int events,
									const char *condition, List *arguments);
static void check_command(const char *command, int nargs);
static void command_error_callback(void *arg);
static void execute(const char *command);
static void advise(Relation table, CaptureArguments *arguments);
static bool expects_results(const char *topic);
static bool captures_to(Relation triggers, HeapTuple tuple, Oid function, const char *topic);
static List *capture_triggers(Oid table, const char *topic);

PG_FUNCTION_INFO_V1(outbox_attach);

/*
 * Captures a table's changes: checks all that the trigger will check when it
 * fires, and creates it.  Returns its name.
 */
Datum
outbox_attach(PG_FUNCTION_ARGS)
{
	Relation	table;
	List	   *arguments;
	char	  **args;
	CaptureArguments *parsed;
	int			events;
	char	   *name;
	char	   *condition = NULL;
	char	   *command;

	if (PG_ARGISNULL(ARG_SOURCE) || PG_ARGISNULL(ARG_TOPIC))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the table and the topic must not be null")));
	if (!PG_ARGISNULL(ARG_CONDITION))
		condition = text_to_cstring(PG_GETARG_TEXT_PP(ARG_CONDITION));

	/* The lock keeps the name, and what is checked, as they are */
	table = open_relation(PG_GETARG_OID(ARG_SOURCE));

	arguments = trigger_arguments(fcinfo);
	args = palloc(list_length(arguments) * sizeof(char *));
	for (int i = 0; i < list_length(arguments); i++)
		args[i] = list_nth(arguments, i);
	parsed = capture_arguments(table, list_length(arguments), args);
	events = parse_events(text_array(fcinfo, ARG_EVENTS, "events"));
	if (parsed->delete_as_tombstone && !TRIGGER_FOR_DELETE(events))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delete_as_tombstone needs the event DELETE")));

	name = trigger_name(parsed->topic);
	if (OidIsValid(get_trigger_oid(RelationGetRelid(table), name, true)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("table \"%s\" is attached to topic \"%s\" already",
						RelationGetRelationName(table), parsed->topic),
				 errhint("Call outbox.detach first, or write a second trigger by hand "
						 "with CREATE TRIGGER.")));

	command = create_trigger_command(table, name, events, condition, arguments);
	check_command(command, list_length(arguments));
	execute(command);
	advise(table, parsed);
	relation_close(table, NoLock);

	PG_RETURN_DATUM(DirectFunctionCall1(namein, CStringGetDatum(name)));
}

/* Of whatever kind */
static Relation
open_relation(Oid relid)
{
	Relation	relation = try_relation_open(relid, AccessShareLock);

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	return relation;
}

/* The elements of an argument that is a text array, as strings; NULL: NIL */
static List *
text_array(FunctionCallInfo fcinfo, int arg, const char *what)
{
	List	   *list = NIL;
	Datum	   *values;
	bool	   *isnull;
	int			count;

	if (PG_ARGISNULL(arg))
		return NIL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false, TYPALIGN_INT,
					  &values, &isnull, &count);
	for (int i = 0; i < count; i++)
	{
		if (isnull[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not have a null among them", what)));
		list = lappend(list, TextDatumGetCString(values[i]));
	}
	if (list == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what)));
	return list;
}

/* As bits of pg_trigger.tgtype */
static int
parse_events(List *events)
{
	int			bits = 0;
	ListCell   *cell;

	if (events == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("events must not be null")));
	foreach(cell, events)
	{
		const char *event = lfirst(cell);

		if (pg_strcasecmp(event, "INSERT") == 0)
			bits |= TRIGGER_TYPE_INSERT;
		else if (pg_strcasecmp(event, "UPDATE") == 0)
			bits |= TRIGGER_TYPE_UPDATE;
		else if (pg_strcasecmp(event, "DELETE") == 0)
			bits |= TRIGGER_TYPE_DELETE;
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized event \"%s\"", event),
					 errhint("Valid events are INSERT, UPDATE and DELETE.")));
	}
	return bits;
}

/* The arguments of the trigger, as capture_spec.c has them */
static List *
trigger_arguments(FunctionCallInfo fcinfo)
{
	List	   *arguments = list_make1(text_to_cstring(PG_GETARG_TEXT_PP(ARG_TOPIC)));
	ListCell   *cell;

	if (!PG_ARGISNULL(ARG_KEY))
		arguments = lappend(arguments,
							psprintf("key=%s", text_to_cstring(PG_GETARG_TEXT_PP(ARG_KEY))));
	foreach(cell, text_array(fcinfo, ARG_COLUMNS, "columns"))
		arguments = lappend(arguments, psprintf("column=%s", (char *) lfirst(cell)));
	if (!PG_ARGISNULL(ARG_HEADERS))
	{
		Jsonb	   *headers = PG_GETARG_JSONB_P(ARG_HEADERS);

		arguments = lappend(arguments,
							psprintf("headers=%s", JsonbToCString(NULL, &headers->root,
																  VARSIZE(headers))));
	}
	if (!PG_ARGISNULL(ARG_DELETE_AS_TOMBSTONE) && PG_GETARG_BOOL(ARG_DELETE_AS_TOMBSTONE))
		arguments = lappend(arguments, "delete=tombstone");
	if (!PG_ARGISNULL(ARG_NUMBERS_AS_TEXT) && PG_GETARG_BOOL(ARG_NUMBERS_AS_TEXT))
		arguments = lappend(arguments, "numbers=text");
	return arguments;
}

/* outbox_<topic>; what is too long ends in a hash of the topic */
static char *
trigger_name(const char *topic)
{
	char	   *name = psprintf("outbox_%s", topic);
	uint32		hash = hash_bytes((const unsigned char *) topic, strlen(topic));

	if (strlen(name) < NAMEDATALEN)
		return name;
	return psprintf("%.*s_%08x", NAMEDATALEN - 10, name, hash);
}

/* A comment in the condition ends with its line */
static char *
create_trigger_command(Relation table, const char *name, int events,
					   const char *condition, List *arguments)
{
	StringInfoData command;
	const char *separator = "";
	ListCell   *cell;

	initStringInfo(&command);
	appendStringInfo(&command, "CREATE TRIGGER %s AFTER", quote_identifier(name));
	if (TRIGGER_FOR_INSERT(events))
		appendStringInfoString(&command, " INSERT");
	if (TRIGGER_FOR_UPDATE(events))
		appendStringInfoString(&command, TRIGGER_FOR_INSERT(events) ? " OR UPDATE" : " UPDATE");
	if (TRIGGER_FOR_DELETE(events))
		appendStringInfoString(&command, events != TRIGGER_TYPE_DELETE ? " OR DELETE" : " DELETE");
	appendStringInfo(&command, " ON %s FOR EACH ROW",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
												RelationGetRelationName(table)));
	if (condition != NULL)
		appendStringInfo(&command, " WHEN (%s\n)", condition);
	appendStringInfo(&command, " EXECUTE FUNCTION %s.capture(", OUTBOX_SCHEMA);
	foreach(cell, arguments)
	{
		appendStringInfo(&command, "%s%s", separator, quote_literal_cstr(lfirst(cell)));
		separator = ", ";
	}
	appendStringInfoChar(&command, ')');
	return command.data;
}

/* The condition must not have made something else of it */
static void
check_command(const char *command, int nargs)
{
	List	   *statements;
	Node	   *statement;
	ErrorContextCallback callback;

	callback.callback = command_error_callback;
	callback.arg = unconstify(char *, command);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	statements = raw_parser(command, RAW_PARSE_DEFAULT);
	error_context_stack = callback.previous;

	statement = linitial_node(RawStmt, statements)->stmt;
	if (list_length(statements) != 1 || !IsA(statement, CreateTrigStmt) ||
		list_length(((CreateTrigStmt *) statement)->args) != nargs)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the condition must be one expression")));
}

/* A syntax error's position is one in the command, not in the caller's query */
static void
command_error_callback(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
}

static void
execute(const char *command)
{
	int			result;

	SPI_connect();
	result = SPI_execute(command, false, 0);
	if (result != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute returned %s: %s", SPI_result_code_string(result), command);
	SPI_finish();
}

/* What will work, but perhaps not as expected */
static void
advise(Relation table, CaptureArguments *arguments)
{
	Oid			owner = table->rd_rel->relowner;

	if (!topic_may_send(arguments->topic, owner))
	{
		char	   *name = GetUserNameFromId(owner, false);

		ereport(WARNING,
				(errmsg("role \"%s\" may not send to topic \"%s\" yet", name, arguments->topic),
				 errdetail("It owns table \"%s\"; changes that are captured will fail.",
						   RelationGetRelationName(table)),
				 topic_grant_hint(arguments->topic, name)));
	}
	if (arguments->key != NULL && expects_results(arguments->topic))
		ereport(NOTICE,
				(errmsg("messages for topic \"%s\" have a key of their own, and results are expected",
						arguments->topic),
				 errdetail("A service can't find the message's id in the key."),
				 errhint("It must copy header \"id\" into header \"reply_to_message_id\" "
						 "of its result, or return header \"kafka_correlationId\".")));
}

/* Has the topic a result topic?  The caller need not be allowed to read that. */
static bool
expects_results(const char *topic)
{
	Relation	table = table_open(outbox_relation_oid("topic_config"), AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(table, snapshot, 0, NULL);
	bool		found = false;

	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		name = slot_getattr(slot, Anum_config_topic, &isnull);

		found = strcmp(TextDatumGetCString(name), topic) == 0 &&
			!slot_attisnull(slot, Anum_config_result_topic);
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(table, AccessShareLock);
	return found;
}

PG_FUNCTION_INFO_V1(outbox_detach);

/*
 * Drops the capture triggers of a table: those for a topic, or all.  Those that
 * a partition has from its parent stay.  Returns how many there were.
 */
Datum
outbox_detach(PG_FUNCTION_ARGS)
{
	Oid			source;
	Relation	table;
	char	   *topic = NULL;
	List	   *triggers;
	ListCell   *cell;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the table must not be null")));
	source = PG_GETARG_OID(0);
	if (!PG_ARGISNULL(1))
		topic = text_to_cstring(PG_GETARG_TEXT_PP(1));

	table = open_relation(source);
	triggers = capture_triggers(source, topic);
	foreach(cell, triggers)
		execute(psprintf("DROP TRIGGER %s ON %s", quote_identifier(lfirst(cell)),
						 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(table)),
													RelationGetRelationName(table))));
	relation_close(table, NoLock);
	PG_RETURN_INT32(list_length(triggers));
}

/* Names of the triggers to drop */
static List *
capture_triggers(Oid table, const char *topic)
{
	Oid			argtypes[1] = {InvalidOid};
	Oid			function = LookupFuncName(list_make2(makeString(OUTBOX_SCHEMA),
													 makeString("capture")),
										  0, argtypes, false);
	Relation	triggers = table_open(TriggerRelationId, AccessShareLock);
	List	   *names = NIL;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(table));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (captures_to(triggers, tuple, function, topic))
			names = lappend(names,
							pstrdup(NameStr(((Form_pg_trigger) GETSTRUCT(tuple))->tgname)));
	}
	systable_endscan(scan);
	table_close(triggers, AccessShareLock);
	return names;
}

/* topic: NULL for any */
static bool
captures_to(Relation triggers, HeapTuple tuple, Oid function, const char *topic)
{
	Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
	bool		isnull;
	Datum		args;

	if (trigger->tgfoid != function || OidIsValid(trigger->tgparentid))
		return false;
	if (topic == NULL)
		return true;

	/* strings one after the other, each with its end */
	args = heap_getattr(tuple, Anum_pg_trigger_tgargs, RelationGetDescr(triggers), &isnull);
	return trigger->tgnargs > 0 && !isnull &&
		strcmp(VARDATA_ANY(DatumGetByteaPP(args)), topic) == 0;
}
