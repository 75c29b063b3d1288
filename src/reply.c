/*-------------------------------------------------------------------------
 *
 * reply.c
 *	  Replies: what a handler's outcome looks like to the other side.
 *
 * A reply is a message like any other, captured with the handler's effects.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "capture.h"
#include "compat.h"
#include "handled.h"

static bytea *
utf8_bytea(const char *text)
{
	const char *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);

	return cstring_to_text(utf8);
}

bytea *
reply_value(const HandlerOutcome *outcome)
{
	StringInfoData json;

	if (outcome->verdict == HANDLER_DONE && outcome->value == NULL)
		return utf8_bytea("SUCCESS");

	initStringInfo(&json);
	if (outcome->verdict == HANDLER_DONE)
	{
		appendStringInfoString(&json, "{\"status\": \"SUCCESS\", \"result\": ");
		if (outcome->value_is_json)
			appendStringInfoString(&json, outcome->value);
		else
			json_append_string(&json, outcome->value, strlen(outcome->value));
	}
	else
	{
		appendStringInfoString(&json, "{\"status\": \"FAILED\", \"error\": ");
		json_append_string(&json, outcome->error, strlen(outcome->error));
		appendStringInfo(&json, ", \"sqlstate\": \"%s\"", outcome->sqlstate);
	}
	appendStringInfoChar(&json, '}');
	return utf8_bytea(json.data);
}

/* What the other side finds its message by */
static Jsonb *
reply_headers(const Handled *handled, const char *id)
{
	HeadersWriter *writer = headers_begin();
	const BridgeHeader *correlation = record_header(handled->record, HEADER_CORRELATION);

	if (id != NULL)
		headers_add_text(writer, "reply_to_message_id", id);
	if (correlation != NULL)
		headers_add_bytes(writer, HEADER_CORRELATION, correlation->value, correlation->len);
	return headers_end(writer);
}

void
reply_send(const Handled *handled)
{
	NewMessage	message = {0};
	pg_uuid_t	id;
	char	   *id_text = NULL;

	if (handled->has_id)
		id_text = DatumGetCString(DirectFunctionCall1(uuid_out,
													  UUIDPGetDatum(&handled->id)));
	message.topic = handled->subscription->reply_topic;
	message.topic_len = strlen(message.topic);
	message.key = id_text;
	if (id_text == NULL && handled->record->key != NULL)
		message.key = record_text(handled->record->key, handled->record->key_len);
	message.key_len = message.key ? strlen(message.key) : 0;
	message.payload = handled->reply;
	message.headers = reply_headers(handled, id_text);
	log_append(&message, &id);
}
