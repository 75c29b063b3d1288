/*-------------------------------------------------------------------------
 *
 * record_datum.c
 *	  A record from Kafka as values of SQL.
 *
 * Anybody may have written the record: nothing here raises an ERROR because
 * of what is in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/typcache.h"

#include "capture.h"
#include "compat.h"
#include "handled.h"
#include "relation.h"

/* Columns of outbox.record */
enum
{
	RECORD_TOPIC,
	RECORD_PARTITION,
	RECORD_OFFSET,
	RECORD_TIMESTAMP,
	RECORD_KEY,
	RECORD_PAYLOAD,
	RECORD_PAYLOAD_BYTES,
	RECORD_HEADERS,
	RECORD_MESSAGE_ID,
	RECORD_COLUMNS
};

char *
record_text(const char *bytes, int len)
{
	text	   *shown = payload_text(bytes, len);
	char	   *hex;

	if (shown != NULL)
		return text_to_cstring(shown);
	hex = palloc((Size) len * 2 + 3);
	strcpy(hex, "\\x");
	hex[2 + hex_encode(bytes, len, hex + 2)] = '\0';
	return hex;
}

/* ---------------------------------------------------------------------
 * Headers
 * --------------------------------------------------------------------- */

const BridgeHeader *
record_header(const BridgeRecord *record, const char *name)
{
	for (int i = 0; i < record->nheaders; i++)
	{
		if (strcmp(record->headers[i].name, name) == 0 && record->headers[i].value != NULL)
			return &record->headers[i];
	}
	return NULL;
}

typedef struct NamedHeader
{
	const char *name;
	const BridgeHeader *header;
} NamedHeader;

/* By name, then in the order of the record */
static int
compare_headers(const void *a, const void *b)
{
	const NamedHeader *left = a;
	const NamedHeader *right = b;
	int			order = strcmp(left->name, right->name);

	return order != 0 ? order : (left->header > right->header) - (left->header < right->header);
}

static void
push_value(JsonbParseState **state, JsonbIteratorToken token, const BridgeHeader *header,
		   bool to_send)
{
	JsonbValue	value;

	value.type = jbvNull;
	if (header->value != NULL)
	{
		text	   *shown = to_send ? payload_text(header->value, header->len) : NULL;

		if (to_send && shown == NULL)
		{
			headers_push_bytes(state, header->value, header->len);
			return;
		}
		value.type = jbvString;
		value.val.string.val = record_text(header->value, header->len);
		value.val.string.len = strlen(value.val.string.val);
	}
	pushJsonbValue(state, token, &value);
}

static void
push_name(JsonbParseState **state, const char *name)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, name);
	value.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &value);
}

/* The headers by name; those to send are without the id, which is written anew */
static int
sort_headers(const BridgeRecord *record, bool to_send, NamedHeader *sorted)
{
	int			n = 0;

	for (int i = 0; i < record->nheaders; i++)
	{
		const BridgeHeader *header = &record->headers[i];

		if (to_send && strcmp(header->name, "id") == 0)
			continue;
		sorted[n].name = record_text(header->name, strlen(header->name));
		sorted[n++].header = header;
	}
	qsort(sorted, n, sizeof(NamedHeader), compare_headers);
	return n;
}

/* A header that comes more than once is an array */
Jsonb *
record_headers(const BridgeRecord *record, bool to_send)
{
	NamedHeader *sorted = palloc(Max(record->nheaders, 1) * sizeof(NamedHeader));
	int			n = sort_headers(record, to_send, sorted);
	JsonbParseState *state = NULL;
	int			end;

	if (n == 0)
		return NULL;
	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int start = 0; start < n; start = end)
	{
		for (end = start + 1; end < n && strcmp(sorted[end].name, sorted[start].name) == 0;)
			end++;
		push_name(&state, sorted[start].name);
		if (end == start + 1)
		{
			push_value(&state, WJB_VALUE, sorted[start].header, to_send);
			continue;
		}
		pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
		for (int i = start; i < end; i++)
			push_value(&state, WJB_ELEM, sorted[i].header, to_send);
		pushJsonbValue(&state, WJB_END_ARRAY, NULL);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* ---------------------------------------------------------------------
 * The composite
 * --------------------------------------------------------------------- */

/* From milliseconds since 1970; false for what is none */
static bool
record_time(int64 milliseconds, TimestampTz *time)
{
	const int64 epoch = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY * 1000;

	if (milliseconds < 0 || milliseconds > PG_INT64_MAX / 1000)
		return false;
	*time = (milliseconds - epoch) * 1000;
	return IS_VALID_TIMESTAMP(*time);
}

Datum
record_datum(const Handled *handled)
{
	const BridgeRecord *record = handled->record;
	TupleDesc	desc = lookup_rowtype_tupdesc(outbox_type_oid("record"), -1);
	Datum		values[RECORD_COLUMNS] = {0};
	bool		isnull[RECORD_COLUMNS] = {0};
	TimestampTz time = 0;
	text	   *payload;
	Jsonb	   *headers = record_headers(record, false);
	Datum		result;

	values[RECORD_TOPIC] = CStringGetTextDatum(record->topic);
	values[RECORD_PARTITION] = Int32GetDatum(record->partition);
	values[RECORD_OFFSET] = Int64GetDatum(record->offset);
	isnull[RECORD_TIMESTAMP] = !record_time(record->timestamp, &time);
	values[RECORD_TIMESTAMP] = TimestampTzGetDatum(time);
	isnull[RECORD_KEY] = record->key == NULL;
	if (record->key != NULL)
		values[RECORD_KEY] = CStringGetTextDatum(record_text(record->key, record->key_len));
	payload = record->value ? payload_text(record->value, record->value_len) : NULL;
	isnull[RECORD_PAYLOAD] = payload == NULL;
	values[RECORD_PAYLOAD] = PointerGetDatum(payload);
	isnull[RECORD_PAYLOAD_BYTES] = record->value == NULL;
	if (record->value != NULL)
		values[RECORD_PAYLOAD_BYTES] =
			PointerGetDatum(cstring_to_text_with_len(record->value, record->value_len));
	isnull[RECORD_HEADERS] = headers == NULL;
	values[RECORD_HEADERS] = JsonbPGetDatum(headers);
	isnull[RECORD_MESSAGE_ID] = !handled->has_id;
	values[RECORD_MESSAGE_ID] = UUIDPGetDatum(&handled->id);

	result = heap_copy_tuple_as_datum(heap_form_tuple(desc, values, isnull), desc);
	ReleaseTupleDesc(desc);
	return result;
}
