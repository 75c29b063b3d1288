/*-------------------------------------------------------------------------
 *
 * batch_record.c
 *	  From a row of the log to a record for Kafka.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "batch.h"
#include "compat.h"
#include "text_output.h"

static char *
to_utf8(const char *text, int *len)
{
	char	   *utf8 = pg_server_to_any(text, *len, PG_UTF8);

	if (utf8 != text)
		*len = strlen(utf8);
	return utf8;
}

static void
add_header(BridgeRecord *record, int *allocated, const char *name,
		   const char *value, int len)
{
	if (record->nheaders == *allocated)
	{
		*allocated = Max(8, *allocated * 2);
		record->headers = record->headers == NULL ?
			palloc(*allocated * sizeof(BridgeHeader)) :
			repalloc(record->headers, *allocated * sizeof(BridgeHeader));
	}
	record->headers[record->nheaders].name = name;
	record->headers[record->nheaders].value = value;
	record->headers[record->nheaders++].len = len;
}

/* A scalar of the headers as the bytes that go out; NULL for null */
static const char *
header_value(const JsonbValue *value, int *len)
{
	char	   *text;

	switch (value->type)
	{
		case jbvNull:
			*len = 0;
			return NULL;
		case jbvString:
			*len = value->val.string.len;
			return to_utf8(pnstrdup(value->val.string.val, *len), len);
		case jbvBool:
			text = pstrdup(value->val.boolean ? "true" : "false");
			break;
		case jbvNumeric:
			text = DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
			break;
		default:
			elog(ERROR, "unexpected type of a header's value: %d", value->type);
	}
	*len = strlen(text);
	return text;
}

/* Bytes that are no text; see capture.h */
static const char *
header_bytes(const JsonbValue *hex, int *len)
{
	char	   *bytes = palloc(hex->val.string.len / 2 + 1);

	*len = (int) hex_decode(hex->val.string.val, hex->val.string.len, bytes);
	return bytes;
}

/* The application's headers, or our own; an array repeats one */
static void
add_headers(BridgeRecord *record, int *allocated, Jsonb *headers)
{
	JsonbIterator *iterator = JsonbIteratorInit(&headers->root);
	JsonbIteratorToken token;
	JsonbValue	value;
	const char *name = "";
	int			objects = 0;	/* that we are in */

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		int			len;

		if (token == WJB_BEGIN_OBJECT)
			objects++;
		else if (token == WJB_END_OBJECT)
			objects--;
		else if (token == WJB_KEY && objects == 1)
		{
			len = value.val.string.len;
			name = to_utf8(pnstrdup(value.val.string.val, len), &len);
		}
		else if (token == WJB_VALUE || token == WJB_ELEM)
		{
			const char *bytes = objects > 1 ? header_bytes(&value, &len) :
				header_value(&value, &len);

			add_header(record, allocated, name, bytes, len);
		}
	}
}

static void
fill_headers(OutMessage *message, const char *id_text, TupleTableSlot *slot)
{
	BridgeRecord *record = &message->record;
	const TopicConfig *config = message->config;
	char		op = DatumGetChar(slot->tts_values[Anum_log_op - 1]);
	Jsonb	   *headers = DatumGetJsonbPCopy(slot->tts_values[Anum_log_headers - 1]);
	int			allocated = 0;

	add_header(record, &allocated, "id", id_text, UUID_TEXT_LEN);
	if (config != NULL)
	{
		add_header(record, &allocated, "kafka_correlationId", (const char *) message->id.data,
				   UUID_LEN);
		add_header(record, &allocated, "kafka_replyTopic", config->result_topic,
				   strlen(config->result_topic));
	}
	if (op != '\0')
		add_header(record, &allocated, "op", pnstrdup(&op, 1), 1);
	if (JB_ROOT_COUNT(headers) > 0)
		add_headers(record, &allocated, headers);
}

/* Most messages are of the topic that the one before them was of */
static void
fill_topic(const Batch *batch, OutMessage *message, const char *topic)
{
	const OutMessage *last = message > batch->messages ? message - 1 : NULL;

	if (last != NULL && strcmp(last->record.topic, topic) == 0)
	{
		message->record.topic = last->record.topic;
		message->config = last->config;
		return;
	}
	message->record.topic = pstrdup(topic);
	message->config = topic_config_find(topic);
}

void
batch_fill_record(const Batch *batch, OutMessage *message, const LogRow *row)
{
	BridgeRecord *record = &message->record;
	TupleTableSlot *slot = row->slot;
	char	   *id_text = palloc(UUID_TEXT_LEN + 1);

	uuid_text(&row->id, id_text);
	id_text[UUID_TEXT_LEN] = '\0';
	memset(record, 0, sizeof(BridgeRecord));
	slot_getsomeattrs(slot, Anum_log_headers);
	fill_topic(batch, message, row->topic);
	if (slot->tts_isnull[Anum_log_key - 1])
	{
		message->key = NULL;
		record->key = id_text;
		record->key_len = UUID_TEXT_LEN;
	}
	else
	{
		char	   *key = TextDatumGetCString(slot->tts_values[Anum_log_key - 1]);

		message->key = key;
		record->key_len = strlen(key);
		record->key = to_utf8(key, &record->key_len);
	}
	if (!slot->tts_isnull[Anum_log_payload - 1])
	{
		bytea	   *payload = DatumGetByteaPCopy(slot->tts_values[Anum_log_payload - 1]);

		record->value = VARDATA(payload);
		record->value_len = VARSIZE(payload) - VARHDRSZ;
	}
	fill_headers(message, id_text, slot);
}
