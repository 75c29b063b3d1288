/*-------------------------------------------------------------------------
 *
 * inbox.c
 *	  outbox.inbox: what subscriptions have handled.
 *
 * A ring like the log's.  A message's id doesn't tell the segment, since it is
 * the sender's, so every segment in use is looked into.
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
#include "store.h"

/* In DatabaseSlot.inbox_used, beside a bit for each segment: these are known */
#define INBOX_KNOWN		(1u << OUTBOX_SEGMENTS)

/* The segments that may hold anything */
static uint32
segments_used(DatabaseSlot *database)
{
	uint32		used = pg_atomic_read_u32(&database->inbox_used);

	if (used & INBOX_KNOWN)
		return used;
	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		if (store_execute(psprintf("SELECT FROM outbox.inbox_%d LIMIT 1", segment),
						  0, NULL, NULL, NULL) > 0)
			used |= 1u << segment;
	}
	return pg_atomic_fetch_or_u32(&database->inbox_used, used | INBOX_KNOWN) | used;
}

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

void
inbox_find(Handled *handled, int n)
{
	static const Oid types[] = {UUIDARRAYOID, TEXTARRAYOID};
	uint32		used = segments_used(outbox_my_database());
	Datum		values[3];

	if (make_arrays(handled, n, HANDLED_NOT, values) == 0)
		return;
	for (int segment = 0; segment < OUTBOX_SEGMENTS; segment++)
	{
		uint64		found;

		if (!(used & (1u << segment)))
			continue;
		found = store_execute(psprintf("SELECT i.message_id, i.topic, i.reply"
									   " FROM unnest($1, $2) AS n(id, topic),"
									   "  outbox.inbox_%d AS i"
									   " WHERE i.message_id = n.id AND i.topic = n.topic",
									   segment), 2, types, values, NULL);
		for (uint64 i = 0; i < found; i++)
			take_row(handled, n, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
	}
}

/*
 * The bit is set before the rows are there.  Somebody else who handled one of
 * them at the same time makes this a unique_violation, and the batch is done
 * again.
 */
void
inbox_add(const Handled *handled, int n)
{
	static const Oid types[] = {UUIDARRAYOID, TEXTARRAYOID, BYTEAARRAYOID, INT2OID,
	TIMESTAMPTZOID};
	DatabaseSlot *database = outbox_my_database();
	uint32		segment = pg_atomic_read_u32(&database->segment) % OUTBOX_SEGMENTS;
	Datum		values[5];

	if (make_arrays(handled, n, HANDLED_NOW, values) == 0)
		return;
	pg_atomic_fetch_or_u32(&database->inbox_used, 1u << segment);
	values[3] = Int16GetDatum(segment);
	values[4] = TimestampTzGetDatum(GetCurrentTimestamp());
	store_execute(psprintf("INSERT INTO outbox.inbox_%u (message_id, topic, segment,"
						   "  handled_at, reply)"
						   " SELECT n.id, n.topic, $4, $5, n.reply"
						   " FROM unnest($1, $2, $3) AS n(id, topic, reply)", segment),
				  5, types, values, NULL);
}
