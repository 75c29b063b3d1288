/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Reads the messages of one publishing pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "batch.h"
#include "compat.h"
#include "recovery.h"
#include "text_output.h"

void
batch_init(Batch *batch)
{
	memset(batch, 0, sizeof(Batch));
	batch->context = AllocSetContextCreate(TopMemoryContext, "outbox batch",
										   ALLOCSET_DEFAULT_SIZES);
	batch->messages = MemoryContextAlloc(TopMemoryContext,
										 BATCH_MESSAGES * sizeof(OutMessage));
}

bool
batch_has(const Batch *batch, int quarters)
{
	return batch->n >= BATCH_MESSAGES / 4 * quarters ||
		batch->bytes >= BATCH_BYTES / 4 * quarters;
}

static bool
batch_is_full(const Batch *batch)
{
	return batch_has(batch, 4);
}

/* ---------------------------------------------------------------------
 * From a row to a record
 * --------------------------------------------------------------------- */

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
fill_headers(OutMessage *message, const char *id_text, Jsonb *headers)
{
	BridgeRecord *record = &message->record;
	const TopicConfig *config = message->config;
	int			allocated = 0;

	add_header(record, &allocated, "id", id_text, UUID_TEXT_LEN);
	if (config != NULL)
	{
		add_header(record, &allocated, "kafka_correlationId", (const char *) message->id.data,
				   UUID_LEN);
		add_header(record, &allocated, "kafka_replyTopic", config->result_topic,
				   strlen(config->result_topic));
	}
	if (headers != NULL)
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

/* Fills the record in the batch's context */
static void
fill_record(const Batch *batch, OutMessage *message, const LogRow *row)
{
	BridgeRecord *record = &message->record;
	TupleTableSlot *slot = row->slot;
	Jsonb	   *headers = NULL;
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
	if (!slot->tts_isnull[Anum_log_headers - 1])
		headers = DatumGetJsonbPCopy(slot->tts_values[Anum_log_headers - 1]);
	fill_headers(message, id_text, headers);
}

static void
batch_add(Batch *batch, const LogRow *row, MessageSource source, Suspect *suspect)
{
	OutMessage *message = &batch->messages[batch->n++];
	MemoryContext old = MemoryContextSwitchTo(batch->context);

	Assert(row->status == STATUS_NEW);
	message->id = row->id;
	message->place = row->place;
	message->clock = row->clock;
	message->source = source;
	message->attempts = row->attempts;
	message->lane = row->lane;
	message->suspect = suspect;
	message->fate = suspect != NULL ? FATE_ALONE : FATE_OPEN;
	message->class = OUTCOME_OK;
	message->error = NULL;
	fill_record(batch, message, row);
	batch->bytes += message->record.value_len + message->record.key_len +
		OUTBOX_MESSAGE_OVERHEAD;
	for (int i = 0; i < message->record.nheaders; i++)
		batch->bytes += message->record.headers[i].len;
	chain_add(batch);
	MemoryContextSwitchTo(old);
}

bool
batch_take(Batch *batch, const LogRow *row, MessageSource source)
{
	Suspect    *suspect;

	if (poison_turn(row, &suspect) == TURN_LATER)
	{
		batch->put_off = true;
		return false;
	}
	batch_add(batch, row, source, suspect);
	return true;
}

/* ---------------------------------------------------------------------
 * Whether its messages wait
 * --------------------------------------------------------------------- */

Held *
message_mark(const OutMessage *message)
{
	const HeldTopic *topic = held_find_topic(message->record.topic);

	if (topic == NULL)
		return NULL;
	return held_find(topic, message->record.key, message->record.key_len);
}

/* The same for a row, without making a record of it: there may be a million */
static Held *
row_mark(const LogRow *row)
{
	const HeldTopic *topic = held_find_topic(row->topic);
	TupleTableSlot *slot = row->slot;
	char	   *key;
	Held	   *held;

	if (topic == NULL || topic->partitions == 0)
		return topic != NULL ? topic->whole : NULL;
	slot_getsomeattrs(slot, Anum_log_key);
	if (slot->tts_isnull[Anum_log_key - 1])
		key = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&row->id)));
	else
		key = TextDatumGetCString(slot->tts_values[Anum_log_key - 1]);
	held = held_find_by_key(topic, key);
	pfree(key);
	return held;
}

/* ---------------------------------------------------------------------
 * The sources
 *
 * Each has its share of the batch, lest the backlog of one delay the others:
 * outbox.delayed a quarter, held topics a half, the queues of keys what is left
 * of three quarters, the publish sweep the rest.
 * --------------------------------------------------------------------- */

/*
 * What outbox.delayed wants out.  A message the publish sweep is going to
 * meet is left to it, and one of a held topic to that; not while the topic's own
 * sweep is under way, which wouldn't see its new lane in this snapshot.
 */
static void
read_delayed(Batch *batch, Sweep *sweep, Snapshot snapshot)
{
	int			n;
	const Delayed *ready = recovery_ready(&n);
	Delayed    *forget = palloc(Max(n, 1) * sizeof(Delayed));
	int			nforget = 0;

	for (int i = 0; i < n && !batch_has(batch, 1); i++)
	{
		LogRow		row;
		LogScan    *scan = log_fetch(&ready[i].id, snapshot, &row);
		Held	   *held;

		if (scan == NULL)
			continue;
		held = row_mark(&row);
		if (row.status == STATUS_NEW && !sweep_wants(sweep, row.lane, row.clock))
		{
			if (held == NULL)
				batch_take(batch, &row, SOURCE_DELAYED);
			else if (held->state < HELD_PROBING)
			{
				if (row.lane == OUTBOX_LANE_NONE)
					recovery_give_lane(&row);
				held_pass_by(held, row.clock);
				forget[nforget++] = ready[i];
			}
		}
		log_scan_end(scan);
	}

	/* the mark that takes them over must be there when the rows are gone */
	if (nforget > 0)
	{
		held_save();
		recovery_forget(forget, nforget);
	}
}

/*
 * The own sweep of a held topic, below the main one: a single message of each
 * mark to be probed, and for those that catch up their part of the share of
 * "sharers" marks.
 */
static void
read_held(Batch *batch, const Sweep *sweep, const char *topic, int sharers, Snapshot snapshot)
{
	MessageClock upto;
	int			marks = held_begin_sweep(topic, &upto);
	int			most = Max(BATCH_MESSAGES / 2 * marks / sharers, 1);
	int			most_rows = Max(CATCH_UP_ROWS / sharers * marks, 100);
	Size		until = batch->bytes + BATCH_BYTES / 2 / sharers * marks;
	LogScan    *scan = log_scan_begin(upto, snapshot);
	LogRow		row;
	int			rows = 0;
	int			added = 0;
	bool		met = true;

	while (log_scan_next(scan, &row) && row.clock < sweep_highest(sweep))
	{
		Held	   *held;

		if (added == most || (rows++ >= most_rows && !batch->put_off) ||
			batch_is_full(batch) || key_queue_is_full() ||
			(added > 0 && batch->bytes >= until))
		{
			met = false;
			break;
		}
		upto = row.clock + 1;
		if (row.status != STATUS_NEW || !sweep_has_lane(sweep, row.lane) ||
			sweep_wants(sweep, row.lane, row.clock) || strcmp(row.topic, topic) != 0)
			continue;
		held = row_mark(&row);
		if (held != NULL && held_sweeps(held, row.clock) && !chain_passes_by(batch, &row) &&
			held_take(held, row.clock))
		{
			if (batch_take(batch, &row, SOURCE_HELD))
				added++;
			else
				held_put_off(held, row.clock);
		}
	}
	log_scan_end(scan);
	held_end_sweep(topic, upto, met);
}

static void
read_all_held(Batch *batch, const Sweep *sweep, Snapshot snapshot)
{
	HeldIterator all = {0};
	HeldIterator iterator = {0};
	int			sharers = held_working();
	Held	   *held;

	while ((held = held_next(&all)) != NULL)
		held_begin_pass(held);
	while ((held = held_next(&iterator)) != NULL)
	{
		if (held->state >= HELD_PROBING && !held->swept && !batch_is_full(batch))
			read_held(batch, sweep, held->topic, sharers, snapshot);
	}
}

/*
 * The publish sweep.  A held topic is passed by, unless its own sweep has come
 * up to this one in this very pass: then its messages follow in order.
 */
static void
read_sweep(Batch *batch, const Sweep *sweep, Snapshot snapshot)
{
	LogScan    *scan = log_scan_begin(sweep_lowest(sweep), snapshot);
	LogRow		row;

	batch->upto = sweep->clock;
	while (log_scan_next(scan, &row))
	{
		Held	   *held;

		batch->looked_at = true;

		/* its row in outbox.delayed is as new as itself */
		if (row.status == STATUS_NEW && row.lane == OUTBOX_LANE_NONE &&
			sweep_has_lane(sweep, OUTBOX_LANE_LATE))
			recovery_wake();
		if (row.status != STATUS_NEW || !sweep_wants(sweep, row.lane, row.clock))
			continue;
		if (batch_is_full(batch) || key_queue_is_full())
		{
			batch->upto = row.clock;
			break;
		}
		held = row_mark(&row);
		if (held != NULL && !(held->met && held->state == HELD_CATCHING_UP))
			held_pass_by(held, row.clock);
		else if (!chain_passes_by(batch, &row) && !batch_take(batch, &row, SOURCE_SWEEP))
			batch->put_off_from = Min(batch->put_off_from, row.clock);
	}
	log_scan_end(scan);
}

void
batch_read(Batch *batch, Sweep *sweep)
{
	Snapshot	snapshot = GetActiveSnapshot();

	MemoryContextReset(batch->context);
	batch->n = 0;
	batch->bytes = 0;
	batch->chains = NULL;
	batch->looked_at = false;
	batch->put_off = false;
	batch->put_off_from = PG_UINT64_MAX;
	poison_begin_pass();

	/* whatever the snapshot shows was written before now */
	batch->flush = outbox_insert_end_lsn();

	read_delayed(batch, sweep, snapshot);
	key_holds_begin_pass();
	read_all_held(batch, sweep, snapshot);
	chain_read_queues(batch, snapshot);
	read_sweep(batch, sweep, snapshot);
	key_queue_save();
}
