/*-------------------------------------------------------------------------
 *
 * log_append.c
 *	  Appends a message to the log.
 *
 * This is the hot path of every capture, hence no executor and no catalog
 * look-up: the row goes straight to the table's and the index's access method.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/tuptable.h"
#include "catalog/index.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "announce.h"
#include "capture.h"
#include "compat.h"
#include "message_id.h"
#include "outbox.h"
#include "relation.h"
#include "ring.h"

/* Columns of outbox.delayed */
enum
{
	Anum_delayed_due_at = 1,
	Anum_delayed_id
};

/*
 * Good for each segment, as they are all alike, and for the life of the
 * session: the layout of the log changes with the version of the library only.
 */
static TupleTableSlot *log_slot = NULL;
static IndexInfo *log_pkey_info = NULL;
static text *no_text = NULL;
static Jsonb *no_headers = NULL;

static void remember_layout(const OpenTable *segment);
static void check_size(const NewMessage *message);
static void check_encoding(const NewMessage *message);
static void fill_slot(const NewMessage *message, const pg_uuid_t *id, int segment, int lane);

void
log_append_init(void)
{
	relation_init();
}

static void
remember_layout(const OpenTable *segment)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "outbox log", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TupleTableSlot *slot;

	if (RelationGetNumberOfAttributes(segment->table) < Natts_log)
		elog(ERROR, "table \"%s\" has %d columns, expected %d",
			 RelationGetRelationName(segment->table),
			 RelationGetNumberOfAttributes(segment->table), Natts_log);

	log_pkey_info = BuildIndexInfo(segment->pkey);
	slot = MakeTupleTableSlot(CreateTupleDescCopy(RelationGetDescr(segment->table)),
							  &TTSOpsVirtual);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	no_text = cstring_to_text("");
	no_headers = headers_empty();
	MemoryContextSwitchTo(old);

	MemoryContextSetParent(context, TopMemoryContext);
	log_slot = slot;
}

static void
check_size(const NewMessage *message)
{
	Size		payload = message->payload ? VARSIZE_ANY_EXHDR(message->payload) : 0;
	Size		key = message->key ? message->key_len : 0;
	Size		headers = message->headers ? VARSIZE_ANY_EXHDR(message->headers) : 0;
	Size		total = payload + key + headers + OUTBOX_MESSAGE_OVERHEAD;

	if (unlikely(total > (Size) outbox_max_message_bytes))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("message for topic \"%s\" is too large", message->topic),
				 errdetail("Payload %zu, key %zu, headers %zu and overhead %d bytes "
						   "exceed outbox.max_message_bytes, which is %d.",
						   payload, key, headers, OUTBOX_MESSAGE_OVERHEAD,
						   outbox_max_message_bytes),
				 errhint("Make it smaller, or raise outbox.max_message_bytes together with "
						 "the topic's max.message.bytes.")));
}

/*
 * The wire speaks UTF-8.  What has no place in that is refused here, where the
 * application hears of it, and not met by a publisher later.
 */
static void
check_encoding(const NewMessage *message)
{
	if (message->key != NULL)
		(void) pg_server_to_any(message->key, message->key_len, PG_UTF8);
	if (message->headers != NULL)
	{
		char	   *text = JsonbToCString(NULL, &message->headers->root, 0);

		(void) pg_server_to_any(text, strlen(text), PG_UTF8);
	}
}

static void
fill_slot(const NewMessage *message, const pg_uuid_t *id, int segment, int lane)
{
	Datum	   *values = log_slot->tts_values;
	bool	   *isnull = log_slot->tts_isnull;

#define SET(column, datum) \
	(values[(column) - 1] = (datum), isnull[(column) - 1] = false)
#define SET_OR_NULL(column, datum, null) \
	(values[(column) - 1] = (datum), isnull[(column) - 1] = (null))

	SET(Anum_log_id, UUIDPGetDatum(id));
	SET(Anum_log_updated_at, TimestampTzGetDatum(message_id_timestamp(id)));
	SET(Anum_log_attempts, Int16GetDatum(0));
	SET(Anum_log_segment, Int16GetDatum(segment));
	SET(Anum_log_lane, Int16GetDatum(lane));
	SET(Anum_log_op, CharGetDatum(message->op));
	SET(Anum_log_status, CharGetDatum(STATUS_NEW));
	SET(Anum_log_result, PointerGetDatum(no_text));
	SET(Anum_log_error, PointerGetDatum(no_text));
	SET(Anum_log_topic,
		PointerGetDatum(cstring_to_text_with_len(message->topic, message->topic_len)));
	SET_OR_NULL(Anum_log_key,
				message->key ? PointerGetDatum(cstring_to_text_with_len(message->key,
																		message->key_len)) : 0,
				message->key == NULL);
	SET_OR_NULL(Anum_log_payload, PointerGetDatum(message->payload), message->payload == NULL);
	SET(Anum_log_headers, JsonbPGetDatum(message->headers ? message->headers : no_headers));

#undef SET
#undef SET_OR_NULL

	ExecClearTuple(log_slot);
	ExecStoreVirtualTuple(log_slot);
}

/* The row of outbox.delayed that brings the message out when it is due */
static void
delay(const pg_uuid_t *id, TimestampTz due)
{
	OpenTable	open;
	TupleTableSlot *slot;

	open_table_by_name("delayed", RowExclusiveLock, &open);
	slot = MakeSingleTupleTableSlot(RelationGetDescr(open.table), &TTSOpsVirtual);
	memset(slot->tts_isnull, true, RelationGetNumberOfAttributes(open.table));
	slot->tts_values[Anum_delayed_due_at - 1] = TimestampTzGetDatum(due);
	slot->tts_isnull[Anum_delayed_due_at - 1] = false;
	slot->tts_values[Anum_delayed_id - 1] = UUIDPGetDatum(id);
	slot->tts_isnull[Anum_delayed_id - 1] = false;
	ExecStoreVirtualTuple(slot);
	open_table_insert(&open, BuildIndexInfo(open.pkey), slot);
	ExecDropSingleTupleTableSlot(slot);
	open_table_close(&open);
}

/*
 * Opens the current segment.  Its number is looked at again under the lock:
 * once a segment isn't the current one and nobody holds this lock on it,
 * nothing is put into it any more.
 */
static uint32
open_current_segment(DatabaseSlot *database, OpenTable *open)
{
	if (unlikely(ring_is_due(database)))
		ring_advance(database);
	for (;;)
	{
		uint32		segment = pg_atomic_read_u32(&database->segment);

		log_segment_open(segment, RowExclusiveLock, open);
		if (likely(pg_atomic_read_u32(&database->segment) == segment))
			return segment;
		open_table_close(open);
	}
}

/*
 * The segment is locked before its bit is set, so that whoever truncates it
 * and clears the bit does so before us or after this transaction.  The id is
 * taken last: what is in the log then is in the order of its insertion.
 */
void
log_append(const NewMessage *message, pg_uuid_t *id)
{
	DatabaseSlot *database = outbox_my_database();
	OpenTable	open;
	uint32		segment;
	int			lane;

	check_size(message);
	if (unlikely(GetDatabaseEncoding() != PG_UTF8))
		check_encoding(message);
	message_floor_ensure();
	announce_transaction();

	segment = open_current_segment(database, &open);
	if (!(pg_atomic_read_u32(&database->segments_used) & segment_bit(segment)))
		pg_atomic_fetch_or_u32(&database->segments_used, segment_bit(segment));
	if (unlikely(log_slot == NULL))
		remember_layout(&open);

	message_id_generate(id, segment);
	lane = message->deliver_at != 0 ? OUTBOX_LANE_NONE :
		message_lane(message->topic, message->topic_len, message->key, message->key_len, id);
	announce_id(id, lane);
	fill_slot(message, id, segment, lane);
	open_table_insert(&open, log_pkey_info, log_slot);
	ExecClearTuple(log_slot);
	open_table_close(&open);
	if (message->deliver_at != 0)
		delay(id, message->deliver_at);
}
