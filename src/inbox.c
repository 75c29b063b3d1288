/*-------------------------------------------------------------------------
 *
 * inbox.c
 *	  outbox.inbox: what subscriptions have handled.
 *
 * A ring: see inbox_ring.c.  A message's id doesn't tell the segment, since it
 * is the sender's, so every segment in use is looked into.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "handled.h"
#include "inbox_ring.h"
#include "store.h"

/* The current segment when this transaction looked into the inbox */
static int	looked_at = 0;

/* Arrays of ids, topics and replies of some of them */
static int
make_arrays(const Handled *handled, int n, HandledFate fate, Datum *values)
{
	Datum	   *ids = palloc(n * sizeof(Datum));
	Datum	   *topics = palloc(n * sizeof(Datum));
	Datum	   *replies = palloc(n * sizeof(Datum));
	bool	   *nulls = palloc(n * sizeof(bool));
	int			lower[1] = {1};
	int			dims[1];
	int			chosen = 0;

	for (int i = 0; i < n; i++)
	{
		if (!handled[i].has_id || handled[i].fate != fate)
			continue;
		ids[chosen] = UUIDPGetDatum(&handled[i].id);
		topics[chosen] = CStringGetTextDatum(handled[i].subscription->topic);
		nulls[chosen] = handled[i].reply == NULL;
		replies[chosen++] = PointerGetDatum(handled[i].reply);
	}
	dims[0] = chosen;
	values[0] = PointerGetDatum(construct_array(ids, chosen, UUIDOID, UUID_LEN, false,
												TYPALIGN_CHAR));
	values[1] = PointerGetDatum(construct_array(topics, chosen, TEXTOID, -1, false,
												TYPALIGN_INT));
	values[2] = PointerGetDatum(construct_md_array(replies, nulls, 1, dims, lower, BYTEAOID,
												   -1, false, TYPALIGN_INT));
	return chosen;
}

/* The handled that the row is about, or several with the same id */
static void
take_row(Handled *handled, int n, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	bool		no_reply;
	pg_uuid_t  *id = DatumGetUUIDP(SPI_getbinval(tuple, desc, 1, &isnull));
	char	   *topic = SPI_getvalue(tuple, desc, 2);
	Datum		reply = SPI_getbinval(tuple, desc, 3, &no_reply);

	for (int i = 0; i < n; i++)
	{
		if (!handled[i].has_id || memcmp(&handled[i].id, id, UUID_LEN) != 0 ||
			strcmp(handled[i].subscription->topic, topic) != 0)
			continue;
		handled[i].fate = HANDLED_BEFORE;
		handled[i].reply = no_reply ? NULL : DatumGetByteaPCopy(reply);
	}
}

/* The rows of one segment for these ids and topics; returns how many */
static uint64
find_in_segment(int segment, const Datum *values)
{
	static const Oid types[] = {UUIDARRAYOID, TEXTARRAYOID};

	return store_execute(psprintf("SELECT i.message_id, i.topic, i.reply"
								  " FROM unnest($1, $2) AS n(id, topic), %s AS i"
								  " WHERE i.message_id = n.id AND i.topic = n.topic",
								  inbox_segment_name(segment)), 2, types, values, NULL);
}

void
inbox_find(Handled *handled, int n)
{
	DatabaseSlot *database = outbox_my_database();
	uint32		used = inbox_ring_used(database);
	Datum		values[3];

	looked_at = (int) pg_atomic_read_u32(&database->inbox_segment);
	if (make_arrays(handled, n, HANDLED_NOT, values) == 0)
		return;
	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		uint64		found = used & (1u << segment) ? find_in_segment(segment, values) : 0;

		for (uint64 i = 0; i < found; i++)
			take_row(handled, n, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	}
}

/*
 * The ring has moved on since this transaction looked: somebody else may have
 * handled one of them and committed that to another segment.
 */
static void
look_again(DatabaseSlot *database, const Datum *values)
{
	uint32		used = inbox_ring_used(database);

	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		if (used & (1u << segment) && find_in_segment(segment, values) > 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNIQUE_VIOLATION),
					 errmsg("a message was handled twice at the same time")));
	}
}

/*
 * Somebody else who handled one of them at the same time makes this a
 * unique_violation, and the batch is done again.
 */
void
inbox_add(const Handled *handled, int n)
{
	static const Oid types[] = {UUIDARRAYOID, TEXTARRAYOID, BYTEAARRAYOID, INT2OID,
	TIMESTAMPTZOID};
	DatabaseSlot *database = outbox_my_database();
	Datum		values[5];
	int			segment;

	if (make_arrays(handled, n, HANDLED_NOW, values) == 0)
		return;
	segment = inbox_ring_open(database);
	if (segment != looked_at)
		look_again(database, values);
	values[3] = Int16GetDatum(segment);
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	store_execute(psprintf("INSERT INTO %s (message_id, topic, segment,"
						   "  handled_at, reply)"
						   " SELECT n.id, n.topic, $4, $5, n.reply"
						   " FROM unnest($1, $2, $3) AS n(id, topic, reply)",
						   inbox_segment_name(segment)),
				  5, types, values, NULL);
}
