/*-------------------------------------------------------------------------
 *
 * send.c
 *	  outbox.send: a message written by hand.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "capture.h"
#include "compat.h"

/* Arguments of the three functions */
enum
{
	ARG_TOPIC,
	ARG_PAYLOAD,
	ARG_KEY,
	ARG_HEADERS,
	ARG_DELIVER_AT
};

static Datum send_message(FunctionCallInfo fcinfo, bytea *payload);
static bytea *utf8_payload(const char *text, int len);

PG_FUNCTION_INFO_V1(outbox_send_jsonb);

/* The payload is the text of the jsonb, in UTF-8 */
Datum
outbox_send_jsonb(PG_FUNCTION_ARGS)
{
	StringInfoData text;
	Jsonb	   *jsonb;

	if (PG_ARGISNULL(ARG_PAYLOAD))
		return send_message(fcinfo, NULL);

	jsonb = PG_GETARG_JSONB_P(ARG_PAYLOAD);
	initStringInfo(&text);
	(void) JsonbToCString(&text, &jsonb->root, VARSIZE(jsonb));
	return send_message(fcinfo, utf8_payload(text.data, text.len));
}

PG_FUNCTION_INFO_V1(outbox_send_text);

/* The payload is the text, in UTF-8 */
Datum
outbox_send_text(PG_FUNCTION_ARGS)
{
	text	   *payload;

	if (PG_ARGISNULL(ARG_PAYLOAD))
		return send_message(fcinfo, NULL);

	payload = PG_GETARG_TEXT_PP(ARG_PAYLOAD);
	return send_message(fcinfo, utf8_payload(VARDATA_ANY(payload),
											 VARSIZE_ANY_EXHDR(payload)));
}

PG_FUNCTION_INFO_V1(outbox_send_bytea);

/* The payload is the bytes as they are */
Datum
outbox_send_bytea(PG_FUNCTION_ARGS)
{
	return send_message(fcinfo, PG_ARGISNULL(ARG_PAYLOAD) ? NULL :
						PG_GETARG_BYTEA_PP(ARG_PAYLOAD));
}

static bytea *
utf8_payload(const char *text, int len)
{
	const char *utf8 = pg_server_to_any(text, len, PG_UTF8);

	return cstring_to_text_with_len(utf8, utf8 == text ? len : strlen(utf8));
}

/* What is due already goes out like any other message: 0 */
static TimestampTz
check_deliver_at(TimestampTz deliver_at)
{
	if (TIMESTAMP_IS_NOEND(deliver_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("deliver_at must not be infinity")));
	return deliver_at > GetCurrentTimestamp() ? deliver_at : 0;
}

static Datum
send_message(FunctionCallInfo fcinfo, bytea *payload)
{
	NewMessage	message = {0};
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	PreventCommandIfReadOnly("outbox.send()");
	PreventCommandIfParallelMode("outbox.send()");

	if (PG_ARGISNULL(ARG_TOPIC))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the topic must not be null")));
	message.topic = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TOPIC));
	message.topic_len = strlen(message.topic);
	topic_name_check(message.topic);

	/* no lock was taken that would have brought news of a revoked grant */
	AcceptInvalidationMessages();
	topic_check_send(message.topic, GetUserId());

	message.payload = payload;
	if (!PG_ARGISNULL(ARG_KEY))
	{
		text	   *key = PG_GETARG_TEXT_PP(ARG_KEY);

		message.key = VARDATA_ANY(key);
		message.key_len = VARSIZE_ANY_EXHDR(key);
	}
	else if (payload == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("a message without a payload needs a key"),
				 errdetail("It is a tombstone: it deletes what the topic has under its key.")));
	if (!PG_ARGISNULL(ARG_HEADERS))
	{
		message.headers = PG_GETARG_JSONB_P(ARG_HEADERS);
		headers_check(message.headers);
		if (JB_ROOT_COUNT(message.headers) == 0)
			message.headers = NULL;
	}
	if (!PG_ARGISNULL(ARG_DELIVER_AT))
		message.deliver_at = check_deliver_at(PG_GETARG_TIMESTAMPTZ(ARG_DELIVER_AT));

	log_append(&message, id);
	PG_RETURN_UUID_P(id);
}
