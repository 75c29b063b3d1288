/*-------------------------------------------------------------------------
 *
 * dead_record.c
 *	  Subscribed records whose handler has failed for good.
 *
 * They are kept with all that they were, to be looked at and replayed, and if
 * the subscription wants it they also go to a topic of their own, with the
 * headers that Spring Kafka's dead-letter publisher writes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "capture.h"
#include "handled.h"
#include "relation.h"
#include "store.h"

/* Numbers are written as Spring does, big-endian */
static void
add_int32(HeadersWriter *writer, const char *name, int32 number)
{
	uint32		bytes = pg_hton32((uint32) number);

	headers_add_bytes(writer, name, (const char *) &bytes, sizeof(bytes));
}

static void
add_int64(HeadersWriter *writer, const char *name, int64 number)
{
	uint64		bytes = pg_hton64((uint64) number);

	headers_add_bytes(writer, name, (const char *) &bytes, sizeof(bytes));
}

static Jsonb *
dead_letter_headers(const Handled *handled)
{
	const BridgeRecord *record = handled->record;
	Jsonb	   *original = record_headers(record, true);
	HeadersWriter *writer = headers_begin();
	Jsonb	   *added;

	/* its header "id" is the dead letter's own */
	if (handled->has_id)
		headers_add_text(writer, "original_id",
						 DatumGetCString(DirectFunctionCall1(uuid_out,
															 UUIDPGetDatum(&handled->id))));
	headers_add_text(writer, "kafka_dlt-original-topic", record->topic);
	add_int32(writer, "kafka_dlt-original-partition", record->partition);
	add_int64(writer, "kafka_dlt-original-offset", record->offset);
	add_int64(writer, "kafka_dlt-original-timestamp", record->timestamp);
	headers_add_text(writer, "kafka_dlt-original-timestamp-type", "CreateTime");
	headers_add_text(writer, "kafka_dlt-original-consumer-group", "outbox");
	headers_add_text(writer, "kafka_dlt-exception-fqcn",
					 psprintf("sqlstate.%s", handled->outcome.sqlstate));
	headers_add_text(writer, "kafka_dlt-exception-message", handled->outcome.error);
	added = headers_end(writer);
	if (original == NULL)
		return added;
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(original),
											  JsonbPGetDatum(added)));
}

static void
dead_letter_body(void *state, HandlerOutcome *outcome)
{
	const Handled *handled = state;
	const BridgeRecord *record = handled->record;
	NewMessage	message = {0};
	pg_uuid_t	id;

	message.topic = psprintf("%s%s", record->topic, DEAD_LETTER_SUFFIX);
	message.topic_len = strlen(message.topic);
	if (record->key != NULL)
		message.key = record_text(record->key, record->key_len);
	message.key_len = message.key ? strlen(message.key) : 0;
	if (record->value != NULL)
		message.payload = cstring_to_text_with_len(record->value, record->value_len);
	message.headers = dead_letter_headers(handled);
	log_append(&message, &id);
}

/* With what is added to it, it may be too large */
static void
send_dead_letter(const Handled *handled)
{
	HandlerOutcome outcome;

	handler_isolate(dead_letter_body, unconstify(Handled *, handled), &outcome);
	if (outcome.verdict != HANDLER_DONE)
		ereport(WARNING,
				(errmsg("could not send a dead record to topic \"%s%s\": %s",
						handled->record->topic, DEAD_LETTER_SUFFIX, outcome.error),
				 errdetail("It is in outbox.dead_record only.")));
}

void
dead_record_keep(const Handled *handled)
{
	Oid			types[] = {TEXTOID, INT4OID, INT8OID, UUIDOID, BYTEAOID,
		outbox_type_oid("record"), INT4OID, TEXTOID, TEXTOID};
	const BridgeRecord *record = handled->record;
	const BridgeHeader *correlation = record_header(record, HEADER_CORRELATION);
	Datum		values[lengthof(types)] = {0};
	char		nulls[lengthof(types)];

	memset(nulls, ' ', sizeof(nulls));
	values[0] = CStringGetTextDatum(record->topic);
	values[1] = Int32GetDatum(record->partition);
	values[2] = Int64GetDatum(record->offset);
	values[3] = UUIDPGetDatum(&handled->id);
	nulls[3] = handled->has_id ? ' ' : 'n';
	if (correlation != NULL)
		values[4] = PointerGetDatum(cstring_to_text_with_len(correlation->value,
															 correlation->len));
	nulls[4] = correlation ? ' ' : 'n';
	values[5] = record_datum(handled);
	values[6] = Int32GetDatum(handled->attempts +
							  (handled->outcome.verdict == HANDLER_TRANSIENT ? 0 : 1));
	values[7] = CStringGetTextDatum(handled->outcome.sqlstate);
	values[8] = CStringGetTextDatum(handled->outcome.error);
	store_execute("INSERT INTO outbox.dead_record_data"
				  " (topic, partition, \"offset\", message_id, correlation_id, record,"
				  "  attempts, sqlstate, error, dead_at)"
				  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
				  "  pg_catalog.clock_timestamp())", lengthof(types), types, values, nulls);
	if (handled->subscription->dead_letter)
		send_dead_letter(handled);
	ereport(LOG,
			(errmsg("record at offset " INT64_FORMAT " of topic \"%s\" partition %d is dead: %s",
					record->offset, record->topic, record->partition,
					handled->outcome.error),
			 errdetail("It is in outbox.dead_record; outbox.replay handles it again.")));
}
