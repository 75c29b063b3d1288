/*-------------------------------------------------------------------------
 *
 * message_id.c
 *	  Message ids, and the clock that they are taken from.
 *
 * The clock is one atomic number in shared memory.  Every id moves it on, to
 * the time of day or by one tick, whichever is more, so that it neither
 * stands still nor runs backwards, whatever the system's clock does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/tableam.h"

#include <time.h>

#include "access/relscan.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "message_id.h"
#include "outbox.h"
#include "relation.h"
#include "ring.h"

#define TICKS_PER_MS	4096
#define MESSAGE_CLOCK_MAX	((UINT64CONST(1) << 60) - 1)
#define RANDOM_BITS		54
#define RANDOM_MASK		((UINT64CONST(1) << RANDOM_BITS) - 1)
#define VARIANT_BITS	(UINT64CONST(2) << 62)

/* From 1970 to 2000 */
#define EPOCH_DIFFERENCE \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

static MessageClock time_of_day(void);
static MessageClock clock_take(void);
static uint64 random_bits(void);
static void id_build(pg_uuid_t *id, MessageClock clock, uint64 low);
static bool id_has_clock(const pg_uuid_t *id);
static bool outermost_id(int segment, ScanDirection direction, pg_uuid_t *id);

static MessageClock
time_of_day(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (MessageClock) now.tv_sec * 1000 * TICKS_PER_MS +
		(MessageClock) now.tv_nsec * TICKS_PER_MS / 1000000;
}

/* Takes a tick that nobody else has or will get.  Full barrier. */
static MessageClock
clock_take(void)
{
	MessageClock now = time_of_day();
	MessageClock last = pg_atomic_read_u64(&outbox_shared->clock);
	MessageClock next;

	do
	{
		next = Max(now, last + 1);
	} while (!pg_atomic_compare_exchange_u64(&outbox_shared->clock, &last, next));
	return next;
}

void
message_clock_raise(MessageClock floor)
{
	MessageClock last = pg_atomic_read_u64(&outbox_shared->clock);

	while (last < floor &&
		   !pg_atomic_compare_exchange_u64(&outbox_shared->clock, &last, floor))
		;
}

/*
 * Raising the clock to the time before reading it makes sure that no tick up
 * to the one returned will be taken any more, even if the system's clock is
 * set back now.  announce_read relies on it.
 */
MessageClock
message_clock_read(void)
{
	MessageClock clock;

	message_clock_raise(time_of_day());
	clock = pg_atomic_read_u64(&outbox_shared->clock);
	pg_memory_barrier();
	return clock;
}

/* Fast, and seeded anew in each process: the id is not a secret */
static uint64
random_bits(void)
{
	static pg_prng_state state;
	static bool seeded = false;

	if (unlikely(!seeded))
	{
		if (!pg_prng_strong_seed(&state))
			pg_prng_seed(&state, time_of_day() ^ ((uint64) MyProcPid << 32));
		seeded = true;
	}
	return pg_prng_uint64(&state);
}

static void
id_build(pg_uuid_t *id, MessageClock clock, uint64 low)
{
	uint64		high = (clock >> 12 << 16) | (UINT64CONST(7) << 12) | (clock & 0xFFF);

	high = pg_hton64(high);
	low = pg_hton64(low | VARIANT_BITS);
	memcpy(id->data, &high, sizeof(high));
	memcpy(id->data + sizeof(high), &low, sizeof(low));
}

void
message_id_generate(pg_uuid_t *id, int segment)
{
	Assert(segment >= 0 && segment < OUTBOX_SEGMENTS);
	id_build(id, clock_take(),
			 (uint64) segment << RANDOM_BITS | (random_bits() & RANDOM_MASK));
}

void
message_id_at_clock(pg_uuid_t *id, MessageClock clock, int segment)
{
	Assert(segment >= 0 && segment < OUTBOX_SEGMENTS);
	id_build(id, clock,
			 (uint64) segment << RANDOM_BITS | (random_bits() & RANDOM_MASK));
}

void
message_id_lowest(MessageClock clock, pg_uuid_t *id)
{
	id_build(id, clock, 0);
}

MessageClock
message_id_clock(const pg_uuid_t *id)
{
	uint64		high;

	memcpy(&high, id->data, sizeof(high));
	high = pg_ntoh64(high);
	return (high >> 16 << 12) | (high & 0xFFF);
}

int
message_id_segment(const pg_uuid_t *id)
{
	uint64		low;

	memcpy(&low, id->data + sizeof(low), sizeof(low));
	return (int) (pg_ntoh64(low) >> RANDOM_BITS & 0xFF);
}

/* Is this a UUID that carries a time? */
static bool
id_has_clock(const pg_uuid_t *id)
{
	return (id->data[6] & 0xF0) == 0x70 && (id->data[8] & 0xC0) == 0x80;
}

TimestampTz
message_clock_timestamp(MessageClock clock)
{
	int64		ms = (int64) (clock / TICKS_PER_MS);
	int64		ticks = (int64) (clock % TICKS_PER_MS);

	return ms * 1000 + ticks * 1000 / TICKS_PER_MS - EPOCH_DIFFERENCE;
}

TimestampTz
message_id_timestamp(const pg_uuid_t *id)
{
	return message_clock_timestamp(message_id_clock(id));
}

/* The first tick of that microsecond */
MessageClock
message_clock_at(TimestampTz timestamp)
{
	int64		us;

	if (timestamp <= -EPOCH_DIFFERENCE)
		return 0;
	if (timestamp >= message_clock_timestamp(MESSAGE_CLOCK_MAX))
		return MESSAGE_CLOCK_MAX;
	us = timestamp + EPOCH_DIFFERENCE;
	return (MessageClock) (us / 1000) * TICKS_PER_MS +
		(MessageClock) (us % 1000 * TICKS_PER_MS + 999) / 1000;
}

MessageClock
message_clock_ticks(int64 microseconds)
{
	return (MessageClock) (microseconds / 1000) * TICKS_PER_MS +
		(MessageClock) (microseconds % 1000 * TICKS_PER_MS / 1000);
}

/*
 * The first or last id of a segment, straight from its index and whatever became of
 * the row: those of prepared transactions count, and the others do no harm.
 * Rows with other UUIDs, which only a superuser can have put there, are passed
 * over, for they would carry the clock of the whole instance away.
 */
static bool
outermost_id(int segment, ScanDirection direction, pg_uuid_t *id)
{
	OpenTable	open;
	IndexScanDesc scan;
	bool		found = false;

	log_segment_open(segment, AccessShareLock, &open);
	scan = index_scan_begin(open.table, open.pkey, SnapshotAny, 0);
	scan->xs_want_itup = true;
	index_rescan(scan, NULL, 0, NULL, 0);
	while (!found && index_getnext_tid(scan, direction) != NULL)
	{
		bool		isnull;
		Datum		value = index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull);

		*id = *DatumGetUUIDP(value);
		found = id_has_clock(id);
	}
	index_endscan(scan);
	open_table_close(&open);
	return found;
}

bool
message_largest_id(int segment, pg_uuid_t *id)
{
	return outermost_id(segment, BackwardScanDirection, id);
}

/*
 * The publish sweep starts from the cursors that were saved, by a clock that
 * may have been ahead of ours: no id must be below them.
 */
static void
raise_above_cursors(void)
{
	OpenTable	open;
	TableScanDesc scan;
	TupleTableSlot *slot;
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	open_table_by_name("lane", AccessShareLock, &open);
	slot = table_slot_create(open.table, NULL);
	scan = table_beginscan(open.table, snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		cursor = slot_getattr(slot, Anum_lane_cursor, &isnull);

		message_clock_raise(message_id_clock(DatumGetUUIDP(cursor)));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	open_table_close(&open);
	UnregisterSnapshot(snapshot);
}

/*
 * Sessions may do this at the same time: they find the same, and nobody takes
 * an id before one of them is through.
 */
void
message_floor_ensure(void)
{
	DatabaseSlot *slot = outbox_my_database();
	uint32		used = 0;
	int			current = 0;
	pg_uuid_t	largest = {0};
	pg_uuid_t	first;
	MessageClock since;

	if (likely(pg_atomic_read_u32(&slot->floor_known)))
	{
		pg_read_barrier();
		return;
	}

	raise_above_cursors();
	for (int segment = OUTBOX_SEGMENT_KEPT; segment < OUTBOX_SEGMENTS; segment++)
	{
		pg_uuid_t	id;

		if (!message_largest_id(segment, &id))
			continue;
		message_clock_raise(message_id_clock(&id));
		used |= segment_bit(segment);
		if (segment != OUTBOX_SEGMENT_KEPT &&
			memcmp(&id, &largest, sizeof(id)) > 0)
		{
			largest = id;
			current = segment;
		}
	}
	pg_atomic_fetch_or_u32(&slot->segments_used, used);
	since = outermost_id(current, ForwardScanDirection, &first) ?
		message_id_clock(&first) : message_clock_read();

	/* Only the first may say where to go on: another may have moved since */
	LWLockAcquire(outbox_shared->lock, LW_EXCLUSIVE);
	if (!pg_atomic_read_u32(&slot->floor_known))
	{
		/* rows may have come in that nobody announced: a restore */
		ring_unseal_all(slot);
		ring_begin(slot, current, since);
		pg_write_barrier();
		pg_atomic_write_u32(&slot->floor_known, 1);
	}
	LWLockRelease(outbox_shared->lock);
}

int
message_lane(const char *topic, int topic_len, const char *key, int key_len,
			 const pg_uuid_t *id)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) topic, topic_len, 0);

	if (key != NULL)
		hash = hash_bytes_extended((const unsigned char *) key, key_len, hash);
	else
		hash = hash_bytes_extended(id->data, UUID_LEN, hash);
	return (int) (hash % OUTBOX_LANES);
}

PG_FUNCTION_INFO_V1(outbox_message_time);

/* NULL for a UUID that carries no time */
Datum
outbox_message_time(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);

	if (!id_has_clock(id))
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(message_id_timestamp(id));
}

PG_FUNCTION_INFO_V1(outbox_message_id_at);

Datum
outbox_message_id_at(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	message_id_lowest(message_clock_at(PG_GETARG_TIMESTAMPTZ(0)), id);
	PG_RETURN_UUID_P(id);
}
