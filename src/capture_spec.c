/*-------------------------------------------------------------------------
 *
 * capture_spec.c
 *	  What the arguments of a capture trigger ask for.
 *
 * The first argument is the topic.  The others, in any order:
 *
 *	key=COLUMN						its value is the message's key
 *	column=COLUMN [as NAME]			part of the payload; all columns if none
 *	headers={JSON}					static headers
 *	delete=tombstone				DELETE writes a NULL payload
 *	numbers=text					bigint and numeric as JSON strings
 *
 * attach writes them, and checks them by this very code.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "parser/scansup.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "capture.h"
#include "capture_spec.h"
#include "compat.h"
#include "outbox.h"

static const char *argument_value(const char *arg, const char *name);
static void parse_argument(CaptureArguments *arguments, Relation table, const char *arg);
static void parse_key(CaptureArguments *arguments, Relation table, const char *value);
static void parse_column(CaptureArguments *arguments, Relation table, const char *value);
static void parse_headers(CaptureArguments *arguments, const char *value);
static char *parse_identifier(const char **text, bool *quoted);
static char *parse_json_name(const char *text);
static AttrNumber find_column(Relation table, const char *name, bool quoted);
static AttrNumber column_by_name(TupleDesc desc, const char *name);
static void check_has_value(Relation table, AttrNumber attnum);
static void add_all_columns(CaptureArguments *arguments, Relation table);
static void add_column(CaptureArguments *arguments, Relation table, AttrNumber attnum,
					   char *json_name);

void
capture_check_table(Relation table)
{
	const char *name = RelationGetRelationName(table);
	const char *why;

	switch (table->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("cannot capture messages from \"%s\"", name),
					 errdetail("It is not a table.")));
	}
	if (IsCatalogRelation(table) || IsToastRelation(table))
		why = "It is a system table.";
	else if (RelationGetNamespace(table) == get_namespace_oid(OUTBOX_SCHEMA, true))
		why = "It is one of the extension's own tables.";
	else if (table->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		why = "It is a temporary table.";
	else
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot capture messages from \"%s\"", name),
			 errdetail_internal("%s", why)));
}

CaptureArguments *
capture_arguments(Relation table, int nargs, char **args)
{
	CaptureArguments *arguments = palloc0(sizeof(CaptureArguments));

	capture_check_table(table);
	if (nargs == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a capture trigger needs a topic"),
				 errhint("Name it as the first argument of the trigger: "
						 "EXECUTE FUNCTION outbox.capture('topic').")));
	topic_name_check(args[0]);
	arguments->topic = pstrdup(args[0]);

	for (int i = 1; i < nargs; i++)
		parse_argument(arguments, table, args[i]);
	if (arguments->columns == NIL)
		add_all_columns(arguments, table);
	if (arguments->delete_as_tombstone && arguments->key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a tombstone needs a key"),
				 errhint("Name the key column: key=COLUMN.")));
	return arguments;
}

/* What follows "name=" in an argument, NULL if it is another */
static const char *
argument_value(const char *arg, const char *name)
{
	size_t		len = strlen(name);

	if (strncmp(arg, name, len) == 0 && arg[len] == '=')
		return arg + len + 1;
	return NULL;
}

static void
parse_argument(CaptureArguments *arguments, Relation table, const char *arg)
{
	const char *value;

	if ((value = argument_value(arg, "key")) != NULL)
		parse_key(arguments, table, value);
	else if ((value = argument_value(arg, "column")) != NULL)
		parse_column(arguments, table, value);
	else if ((value = argument_value(arg, "headers")) != NULL)
		parse_headers(arguments, value);
	else if (strcmp(arg, "delete=tombstone") == 0)
		arguments->delete_as_tombstone = true;
	else if (strcmp(arg, "numbers=text") == 0)
		arguments->numbers_as_text = true;
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized argument of a capture trigger: \"%s\"", arg),
				 errhint("After the topic come key=COLUMN, column=COLUMN, column=COLUMN as NAME, "
						 "headers={JSON}, delete=tombstone and numbers=text.")));
}

static void
parse_key(CaptureArguments *arguments, Relation table, const char *value)
{
	const char *rest = value;
	bool		quoted;
	char	   *name = parse_identifier(&rest, &quoted);

	if (arguments->key != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a message has one key column"),
				 errdetail("Both \"%s\" and \"%s\" are named.", arguments->key, name)));
	if (*rest != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid key column: \"%s\"", value),
				 errhint("Put the name into double quotes if it has other characters than "
						 "letters, digits and underscores.")));
	arguments->key_attnum = find_column(table, name, quoted);
	check_has_value(table, arguments->key_attnum);
	arguments->key = pstrdup(NameStr(TupleDescAttr(RelationGetDescr(table),
												   arguments->key_attnum - 1)->attname));
}

/* COLUMN [as NAME] */
static void
parse_column(CaptureArguments *arguments, Relation table, const char *value)
{
	const char *rest = value;
	bool		quoted;
	char	   *name = parse_identifier(&rest, &quoted);
	char	   *json_name = NULL;
	AttrNumber	attnum;

	if (pg_strncasecmp(rest, "as", 2) == 0 && scanner_isspace(rest[2]))
		json_name = parse_json_name(rest + 2);
	if (*rest != '\0' && json_name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid column of a payload: \"%s\"", value),
				 errhint("Write it as COLUMN or COLUMN as NAME; put the name into double quotes "
						 "if it has other characters than letters, digits and underscores.")));
	attnum = find_column(table, name, quoted);
	check_has_value(table, attnum);
	add_column(arguments, table, attnum, json_name);
}

static void
parse_headers(CaptureArguments *arguments, const char *value)
{
	if (arguments->headers != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the headers of a capture trigger are given twice")));
	arguments->headers =
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(value)));
	headers_check(arguments->headers);
	if (headers_have_op(arguments->headers))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("header name \"op\" is reserved"),
				 errdetail("A captured message's header \"op\" says what was done to the row.")));
}

/*
 * Takes a name, quoted or not, and the white space around it.  An empty name is
 * left to fail as a column that doesn't exist.
 */
static char *
parse_identifier(const char **text, bool *quoted)
{
	const char *p = *text;
	StringInfoData name;

	initStringInfo(&name);
	while (scanner_isspace(*p))
		p++;
	*quoted = *p == '"';
	if (*quoted)
	{
		for (p++; *p != '\0'; p++)
		{
			if (*p == '"' && p[1] != '"')
				break;
			if (*p == '"')
				p++;
			appendStringInfoChar(&name, *p);
		}
		if (*p++ == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unterminated quoted name: %s", *text)));
	}
	else
	{
		while (*p != '\0' && !scanner_isspace(*p))
			appendStringInfoChar(&name, *p++);
	}
	while (scanner_isspace(*p))
		p++;
	*text = p;
	return name.data;
}

/*
 * As it is, but for white space around it; double quotes may keep that.  NULL
 * if there is none, or something after the quotes.
 */
static char *
parse_json_name(const char *text)
{
	const char *rest = text;
	bool		quoted;
	char	   *name = parse_identifier(&rest, &quoted);

	if (quoted)
		return *rest == '\0' ? name : NULL;
	if (*name == '\0')
		return NULL;

	/* it may be several words */
	while (scanner_isspace(*text))
		text++;
	name = pstrdup(text);
	for (int len = strlen(name); scanner_isspace(name[len - 1]); len--)
		name[len - 1] = '\0';
	return name;
}

static AttrNumber
column_by_name(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attnum;
	}
	return InvalidAttrNumber;
}

/* A name without quotes may be written as it is, or as SQL would fold it */
static AttrNumber
find_column(Relation table, const char *name, bool quoted)
{
	TupleDesc	desc = RelationGetDescr(table);
	AttrNumber	attnum = column_by_name(desc, name);

	if (attnum == InvalidAttrNumber && !quoted)
		attnum = column_by_name(desc, downcase_truncate_identifier(name, strlen(name), false));
	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist",
						name, RelationGetRelationName(table))));
	return attnum;
}

static void
check_has_value(Relation table, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(table), attnum - 1);

	if (outbox_attribute_is_virtual(att))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot capture virtual generated column \"%s\"",
						NameStr(att->attname)),
				 errdetail("The row that a trigger sees has no value of it."),
				 errhint("Make the column STORED.")));
}

/* Those that the row has a value of */
static void
add_all_columns(CaptureArguments *arguments, Relation table)
{
	TupleDesc	desc = RelationGetDescr(table);

	arguments->all_columns = true;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !outbox_attribute_is_virtual(att))
			add_column(arguments, table, att->attnum, NULL);
	}
}

static void
add_column(CaptureArguments *arguments, Relation table, AttrNumber attnum, char *json_name)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(table), attnum - 1);
	CaptureColumn *column = palloc(sizeof(CaptureColumn));
	ListCell   *cell;

	column->attnum = attnum;
	column->column = pstrdup(NameStr(att->attname));
	column->json_name = json_name ? json_name : column->column;
	foreach(cell, arguments->columns)
	{
		CaptureColumn *other = lfirst(cell);

		if (strcmp(other->json_name, column->json_name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("\"%s\" appears twice in the payload", column->json_name)));
	}
	arguments->columns = lappend(arguments->columns, column);
}
