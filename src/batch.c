/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Reads the messages of one publishing pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"

#include "batch.h"
#include "compat.h"
#include "recovery.h"

/* The bridge is seen to after so many rows, if it has a batch meanwhile */
#define PUMP_ROWS		256

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
	batch_fill_record(batch, message, row);
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

/*
 * Has the pass entered as many as it should into the queues of keys?  Not where
 * it has to begin at the same place again, and would come no further.
 */
static bool
queue_is_full(bool put_off)
{
	if (!key_queue_is_full())
		return false;
	if (put_off)
		key_queue_save();
	return !put_off;
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
		held_save(false);
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
	bool		put_off = false;

	while (log_scan_next(scan, &row) && row.clock < sweep_highest(sweep))
	{
		Held	   *held;

		/* where a suspect keeps the mark back, the next pass comes no further */
		if (added == most || (rows++ >= most_rows && !put_off) || batch_is_full(batch) ||
			queue_is_full(put_off) || (added > 0 && batch->bytes >= until))
		{
			met = false;
			batch->unfinished = true;
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
			{
				held_put_off(held, row.clock);
				put_off = true;
			}
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

/* The sweep may have gone back for an older transaction's messages */
static bool
is_in_flight(const Batch *in_flight, const LogRow *row)
{
	int			low = 0;
	int			high;

	if (in_flight == NULL || row->clock > in_flight->messages[in_flight->n - 1].clock)
		return false;
	for (high = in_flight->n; low < high;)
	{
		int			middle = (low + high) / 2;

		if (memcmp(&in_flight->messages[middle].id, &row->id, UUID_LEN) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low < in_flight->n &&
		memcmp(&in_flight->messages[low].id, &row->id, UUID_LEN) == 0;
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
	int			rows = 0;

	batch->upto = sweep->clock;
	while (log_scan_next(scan, &row))
	{
		Held	   *held;

		if (batch->bridge != NULL && rows++ % PUMP_ROWS == 0)
			bridge_pump(batch->bridge);

		batch->looked_at = true;

		/* its row in outbox.delayed is as new as itself */
		if (row.status == STATUS_NEW && row.lane == OUTBOX_LANE_NONE &&
			sweep_has_lane(sweep, OUTBOX_LANE_LATE))
			recovery_wake();
		if (row.status != STATUS_NEW || !sweep_wants(sweep, row.lane, row.clock) ||
			is_in_flight(batch->in_flight, &row))
			continue;
		if (batch_is_full(batch) || queue_is_full(batch->put_off_from != PG_UINT64_MAX))
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

/* Whatever the snapshot shows was written before now */
static void
begin_reading(Batch *batch, const Batch *in_flight, Bridge *bridge)
{
	MemoryContextReset(batch->context);
	batch->n = 0;
	batch->bytes = 0;
	batch->chains = NULL;
	batch->looked_at = false;
	batch->unfinished = false;
	batch->put_off = false;
	batch->put_off_from = PG_UINT64_MAX;
	batch->in_flight = in_flight;
	batch->bridge = bridge;
	batch->flush = outbox_insert_end_lsn();
}

void
batch_read(Batch *batch, Sweep *sweep)
{
	Snapshot	snapshot = GetActiveSnapshot();

	begin_reading(batch, NULL, NULL);
	poison_begin_pass();
	read_delayed(batch, sweep, snapshot);
	key_holds_begin_pass();
	read_all_held(batch, sweep, snapshot);
	chain_read_queues(batch, snapshot);
	read_sweep(batch, sweep, snapshot);
	key_queue_save();
}

void
batch_read_ahead(Batch *batch, Sweep *sweep, const Batch *in_flight, Bridge *bridge)
{
	begin_reading(batch, in_flight, bridge);
	read_sweep(batch, sweep, GetActiveSnapshot());
	key_queue_save();
}
