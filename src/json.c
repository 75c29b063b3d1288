/*-------------------------------------------------------------------------
 *
 * json.c
 *	  A row as JSON: the shape of row_to_json, whatever the session's settings.
 *
 * How each column is written is found out once; then a row costs no catalog
 * look-up.  Only the columns of a composite value are looked up again when its
 * type has changed.  All is written in the database's encoding, and turned
 * into UTF-8 at the end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "capture.h"
#include "compat.h"
#include "text_output.h"

typedef enum JsonKind
{
	JSON_AS_BOOL,
	JSON_AS_NUMBER,				/* bare, unless it is NaN or infinite */
	JSON_AS_STRING,				/* the text, quoted */
	JSON_AS_TIME,					/* a date or time stamp */
	JSON_AS_EMBEDDED,				/* json: its text */
	JSON_AS_BINARY,				/* jsonb */
	JSON_AS_CAST,					/* what the type's cast to json says */
	JSON_AS_ARRAY,
	JSON_AS_COMPOSITE
} JsonKind;

/* How to write the values of a type */
typedef struct JsonValue
{
	JsonKind	kind;
	Oid			type;			/* no domain */
	bool		numbers_as_text;
	MemoryContext context;		/* where all this is */
	TextOutput	text;			/* of numbers, strings, embedded, and the cast */

	/* array */
	struct JsonValue *element;
	Oid			element_type;
	int16		element_len;
	bool		element_byval;
	char		element_align;

	/* composite: for the row type with this identifier */
	uint64		row_identifier;
	JsonRowWriter *row;
} JsonValue;

typedef struct JsonColumn
{
	AttrNumber	attnum;
	char	   *prefix;			/* {"name": or ,"name": */
	int			prefix_len;
	JsonValue  *value;
} JsonColumn;

struct JsonRowWriter
{
	AttrNumber	last_attnum;	/* deform the row up to this one */
	int			ncolumns;
	JsonColumn	columns[FLEXIBLE_ARRAY_MEMBER];
};

static JsonValue *json_value(Oid type, bool numbers_as_text, MemoryContext context);
static void json_value_classify(JsonValue *value);
static void json_value_other(JsonValue *value);
static JsonRowWriter *row_type_writer(JsonValue *value, TupleDesc desc);
static void write_columns(JsonRowWriter *writer, const Datum *values, const bool *isnull,
						  StringInfo out);
static void write_value(JsonValue *value, Datum datum, StringInfo out);
static void write_number(JsonValue *value, Datum datum, StringInfo out);
static void write_time(JsonValue *value, Datum datum, StringInfo out);
static void write_binary(Datum datum, StringInfo out);
static void write_cast(JsonValue *value, Datum datum, StringInfo out);
static void write_array(JsonValue *value, Datum datum, StringInfo out);
static void write_dimension(JsonValue *element, int ndims, const int *dims,
							const Datum *values, const bool *isnull, int *next,
							StringInfo out);
static void write_composite(JsonValue *value, Datum datum, StringInfo out);

/* ---------------------------------------------------------------------
 * Finding out how
 * --------------------------------------------------------------------- */

static JsonValue *
json_value(Oid type, bool numbers_as_text, MemoryContext context)
{
	JsonValue  *value = MemoryContextAllocZero(context, sizeof(JsonValue));

	check_stack_depth();
	value->type = getBaseType(type);
	value->numbers_as_text = numbers_as_text;
	value->context = context;
	json_value_classify(value);
	return value;
}

static void
json_value_classify(JsonValue *value)
{
	switch (value->type)
	{
		case BOOLOID:
			value->kind = JSON_AS_BOOL;
			return;
		case INT8OID:
		case NUMERICOID:
			value->kind = value->numbers_as_text ? JSON_AS_STRING : JSON_AS_NUMBER;
			break;
		case INT2OID:
		case INT4OID:
		case FLOAT4OID:
		case FLOAT8OID:
			value->kind = JSON_AS_NUMBER;
			break;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			value->kind = JSON_AS_TIME;
			return;
		case JSONOID:
			value->kind = JSON_AS_EMBEDDED;
			break;
		case JSONBOID:
			value->kind = JSON_AS_BINARY;
			return;
		default:
			json_value_other(value);
			return;
	}
	text_output_init(&value->text, value->type, value->context);
}

/* Arrays, composites, and what has a cast to json, as json.c of core has it */
static void
json_value_other(JsonValue *value)
{
	Oid			element = get_element_type(value->type);
	Oid			function = InvalidOid;

	if (OidIsValid(element))
	{
		value->kind = JSON_AS_ARRAY;
		value->element_type = element;
		get_typlenbyvalalign(element, &value->element_len, &value->element_byval,
							 &value->element_align);
		value->element = json_value(element, value->numbers_as_text, value->context);
	}
	else if (type_is_rowtype(value->type))
		value->kind = JSON_AS_COMPOSITE;
	else if (value->type >= FirstNormalObjectId &&
			 find_coercion_pathway(JSONOID, value->type, COERCION_EXPLICIT,
								   &function) == COERCION_PATH_FUNC &&
			 OidIsValid(function))
	{
		value->kind = JSON_AS_CAST;
		fmgr_info_cxt(function, &value->text.function, value->context);
	}
	else
	{
		value->kind = JSON_AS_STRING;
		text_output_init(&value->text, value->type, value->context);
	}
}

JsonRowWriter *
json_row_writer(TupleDesc desc, int ncolumns, const AttrNumber *attnums,
				char *const *names, bool numbers_as_text, MemoryContext context)
{
	JsonRowWriter *writer;
	StringInfoData prefix;

	writer = MemoryContextAlloc(context, offsetof(JsonRowWriter, columns) +
								ncolumns * sizeof(JsonColumn));
	writer->ncolumns = ncolumns;
	writer->last_attnum = 0;

	initStringInfo(&prefix);
	for (int i = 0; i < ncolumns; i++)
	{
		JsonColumn *column = &writer->columns[i];

		resetStringInfo(&prefix);
		appendStringInfoChar(&prefix, i == 0 ? '{' : ',');
		escape_json(&prefix, names[i]);
		appendStringInfoChar(&prefix, ':');
		column->prefix = MemoryContextStrdup(context, prefix.data);
		column->prefix_len = prefix.len;
		column->attnum = attnums[i];
		column->value = json_value(TupleDescAttr(desc, attnums[i] - 1)->atttypid,
								   numbers_as_text, context);
		writer->last_attnum = Max(writer->last_attnum, attnums[i]);
	}
	pfree(prefix.data);
	return writer;
}

/* ---------------------------------------------------------------------
 * Writing
 * --------------------------------------------------------------------- */

bytea *
json_row(JsonRowWriter *writer, TupleTableSlot *slot)
{
	StringInfoData out;
	char	   *utf8;

	slot_getsomeattrs(slot, writer->last_attnum);

	initStringInfo(&out);
	out.len = VARHDRSZ;
	write_columns(writer, slot->tts_values, slot->tts_isnull, &out);

	utf8 = pg_server_to_any(out.data + VARHDRSZ, out.len - VARHDRSZ, PG_UTF8);
	if (unlikely(utf8 != out.data + VARHDRSZ))
	{
		resetStringInfo(&out);
		out.len = VARHDRSZ;
		appendStringInfoString(&out, utf8);
		pfree(utf8);
	}
	SET_VARSIZE(out.data, out.len);
	return (bytea *) out.data;
}

/* The values are those of all columns of the row, by number */
static void
write_columns(JsonRowWriter *writer, const Datum *values, const bool *isnull, StringInfo out)
{
	for (int i = 0; i < writer->ncolumns; i++)
	{
		JsonColumn *column = &writer->columns[i];

		appendBinaryStringInfo(out, column->prefix, column->prefix_len);
		if (isnull[column->attnum - 1])
			appendBinaryStringInfo(out, "null", 4);
		else
			write_value(column->value, values[column->attnum - 1], out);
	}
	if (writer->ncolumns == 0)
		appendStringInfoChar(out, '{');
	appendStringInfoChar(out, '}');
}

static void
write_value(JsonValue *value, Datum datum, StringInfo out)
{
	const char *text;
	int			len;

	switch (value->kind)
	{
		case JSON_AS_BOOL:
			appendStringInfoString(out, DatumGetBool(datum) ? "true" : "false");
			break;
		case JSON_AS_NUMBER:
			write_number(value, datum, out);
			break;
		case JSON_AS_STRING:
			text = text_output(&value->text, datum, &len);
			json_append_string(out, text, len);
			break;
		case JSON_AS_TIME:
			write_time(value, datum, out);
			break;
		case JSON_AS_EMBEDDED:
			text = text_output(&value->text, datum, &len);
			appendBinaryStringInfo(out, text, len);
			break;
		case JSON_AS_BINARY:
			write_binary(datum, out);
			break;
		case JSON_AS_CAST:
			write_cast(value, datum, out);
			break;
		case JSON_AS_ARRAY:
			write_array(value, datum, out);
			break;
		case JSON_AS_COMPOSITE:
			write_composite(value, datum, out);
			break;
	}
}

/*
 * Quotes a string.  What needs no escape is copied in runs; the input need not
 * be terminated.
 */
void
json_append_string(StringInfo out, const char *text, int len)
{
	const char *run = text;
	const char *end = text + len;

	appendStringInfoChar(out, '"');
	for (const char *p = text; p < end; p++)
	{
		unsigned char c = *p;

		if (likely(c >= ' ' && c != '"' && c != '\\'))
			continue;
		appendBinaryStringInfo(out, run, p - run);
		run = p + 1;
		switch (c)
		{
			case '\b':
				appendBinaryStringInfo(out, "\\b", 2);
				break;
			case '\f':
				appendBinaryStringInfo(out, "\\f", 2);
				break;
			case '\n':
				appendBinaryStringInfo(out, "\\n", 2);
				break;
			case '\r':
				appendBinaryStringInfo(out, "\\r", 2);
				break;
			case '\t':
				appendBinaryStringInfo(out, "\\t", 2);
				break;
			case '"':
				appendBinaryStringInfo(out, "\\\"", 2);
				break;
			case '\\':
				appendBinaryStringInfo(out, "\\\\", 2);
				break;
			default:
				appendStringInfo(out, "\\u%04x", c);
				break;
		}
	}
	appendBinaryStringInfo(out, run, end - run);
	appendStringInfoChar(out, '"');
}

static void
write_number(JsonValue *value, Datum datum, StringInfo out)
{
	int			len;
	const char *text = text_output(&value->text, datum, &len);
	char		first = text[0] == '-' ? text[1] : text[0];

	if (likely(first >= '0' && first <= '9'))
		appendBinaryStringInfo(out, text, len);
	else
		json_append_string(out, text, len); /* NaN, Infinity */
}

static void
write_time(JsonValue *value, Datum datum, StringInfo out)
{
	static const int utc = 0;
	char		text[MAXDATELEN + 1];

	JsonEncodeDateTime(text, datum, value->type, &utc);
	appendStringInfoChar(out, '"');
	appendStringInfoString(out, text);
	appendStringInfoChar(out, '"');
}

static void
write_binary(Datum datum, StringInfo out)
{
	Jsonb	   *jsonb = DatumGetJsonbP(datum);

	(void) JsonbToCString(out, &jsonb->root, VARSIZE(jsonb));
}

static void
write_cast(JsonValue *value, Datum datum, StringInfo out)
{
	text	   *json = DatumGetTextPP(call_under_fixed_settings(&value->text.function, datum));

	appendBinaryStringInfo(out, VARDATA_ANY(json), VARSIZE_ANY_EXHDR(json));
}

static void
write_array(JsonValue *value, Datum datum, StringInfo out)
{
	ArrayType  *array = DatumGetArrayTypeP(datum);
	Datum	   *values;
	bool	   *isnull;
	int			count;
	int			next = 0;

	deconstruct_array(array, value->element_type, value->element_len,
					  value->element_byval, value->element_align,
					  &values, &isnull, &count);
	if (count == 0)
		appendBinaryStringInfo(out, "[]", 2);
	else
		write_dimension(value->element, ARR_NDIM(array), ARR_DIMS(array),
						values, isnull, &next, out);
	pfree(values);
	pfree(isnull);
}

/* dims are the sizes of this dimension and those within it */
static void
write_dimension(JsonValue *element, int ndims, const int *dims,
				const Datum *values, const bool *isnull, int *next, StringInfo out)
{
	appendStringInfoChar(out, '[');
	for (int i = 0; i < dims[0]; i++)
	{
		if (i > 0)
			appendStringInfoChar(out, ',');
		if (ndims > 1)
		{
			write_dimension(element, ndims - 1, dims + 1, values, isnull, next, out);
			continue;
		}
		if (isnull[*next])
			appendBinaryStringInfo(out, "null", 4);
		else
			write_value(element, values[*next], out);
		(*next)++;
	}
	appendStringInfoChar(out, ']');
}

static JsonRowWriter *
row_type_writer(JsonValue *value, TupleDesc desc)
{
	AttrNumber *attnums = palloc(desc->natts * sizeof(AttrNumber));
	char	  **names = palloc(desc->natts * sizeof(char *));
	JsonRowWriter *writer;
	int			ncolumns = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		attnums[ncolumns] = att->attnum;
		names[ncolumns++] = NameStr(att->attname);
	}
	writer = json_row_writer(desc, ncolumns, attnums, names, value->numbers_as_text,
							 value->context);
	pfree(attnums);
	pfree(names);
	return writer;
}

static void
write_composite(JsonValue *value, Datum datum, StringInfo out)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(datum);
	Oid			type = HeapTupleHeaderGetTypeId(header);
	int32		typmod = HeapTupleHeaderGetTypMod(header);
	uint64		identifier = assign_record_type_identifier(type, typmod);
	TupleDesc	desc = lookup_rowtype_tupdesc(type, typmod);
	HeapTupleData tuple;
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *isnull = palloc(desc->natts * sizeof(bool));

	check_stack_depth();
	if (value->row == NULL || value->row_identifier != identifier)
	{
		value->row = row_type_writer(value, desc);
		value->row_identifier = identifier;
	}

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, values, isnull);
	ReleaseTupleDesc(desc);

	write_columns(value->row, values, isnull, out);
	pfree(values);
	pfree(isnull);
}
