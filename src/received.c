/*-------------------------------------------------------------------------
 *
 * received.c
 *	  The consumer's batch: what was read and isn't applied yet, and the
 *	  transaction that applies it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/memutils.h"

#include "outcome_handler.h"
#include "read_topic.h"
#include "reading_tag.h"
#include "received.h"
#include "result_apply.h"
#include "subscribed.h"
#include "subscription.h"

/*
 * A batch takes no further record once it has so many, or so many bytes.  Those
 * of handlers become larger while each is one transaction.
 */
#define BATCH_RECORDS	1000
#define BATCH_BYTES		(1024 * 1024)

/* Bad results of a topic are logged this often (ms) */
#define BAD_LOG_INTERVAL 60000

typedef struct Batch
{
	MemoryContext context;
	Received	received[BATCH_RECORDS];
	int			n;
	Size		bytes;
	ReadKind	kind;
	const char *role;			/* whose handlers it calls; NULL: none */
	char		role_name[NAMEDATALEN];
	int			limit;
} Batch;

static Batch batch;
static int	handled_limit = HANDLER_CALLS_MAX;

static const char *role_of(const Partition *partition);
static void take_result(Received *received, const BridgeEvent *event);
static BridgeRecord copy_record(const BridgeRecord *record);
static void log_bad(Partition *partition, int64 offset, const char *problem);
static bool begin_applying(Worker *worker, Received *received, int n);
static int	apply_some(Worker *worker, Received *received, int n, bool alone);
static int	failed(Worker *worker, Received *received, int n, bool alone,
				   const ErrorData *error);
static int	apply_in_transaction(Worker *worker, Received *received, int n, bool alone);
static void for_dirty(void (*what) (Partition *));
static bool anything_to_save(void);
static bool lock_positions(Worker *worker);
static void save_positions(void);

/* ---------------------------------------------------------------------
 * What is in it
 * --------------------------------------------------------------------- */

void
received_init(void)
{
	batch.context = AllocSetContextCreate(TopMemoryContext, "outbox batch",
										  ALLOCSET_DEFAULT_SIZES);
}

bool
received_full(void)
{
	return batch.n > 0 && (batch.n >= batch.limit || batch.bytes >= BATCH_BYTES);
}

/* Whose handlers the records of a partition call; NULL: nobody's */
static const char *
role_of(const Partition *partition)
{
	const Subscription *subscription;

	if (partition->row.kind == READ_RESULTS)
		return outcome_handlers_role(partition->row.topic);
	subscription = subscription_find(partition->row.topic);
	return subscription ? subscription->handler.role_name : NULL;
}

static int
batch_limit(ReadKind kind, const char *role)
{
	if (role == NULL)
		return BATCH_RECORDS;
	if (role[0] == '\0')
		return 1;
	return kind == READ_RESULTS ? HANDLER_CALLS_MAX : handled_limit;
}

/*
 * Between two batches the worker sees to everything else, so one of slow
 * handlers, or of some that fail, must not be long.
 */
static void
adapt_limit(int n, bool one_transaction)
{
	if (batch.role == NULL || batch.kind == READ_RESULTS)
		return;
	if (!one_transaction)
		handled_limit = HANDLER_CALLS_MAX;
	else if (n >= handled_limit)
		handled_limit = Min(handled_limit * 2, BATCH_RECORDS);
}

bool
received_make_room(Worker *worker, const BridgeEvent *event)
{
	Partition  *partition = reading_tag_owner(event->tag);
	const char *role;

	if (partition == NULL || event->type == BRIDGE_WATERMARKS)
		return true;
	role = role_of(partition);
	if (batch.n > 0 &&
		(batch.kind != partition->row.kind || (batch.role == NULL) != (role == NULL) ||
		 (role != NULL && strcmp(role, batch.role) != 0)))
	{
		received_apply(worker);
		if (worker->bridge == NULL)
			return false;
	}
	if (batch.n == 0)
	{
		batch.kind = partition->row.kind;
		batch.role = NULL;
		if (role != NULL)
		{
			strlcpy(batch.role_name, role, sizeof(batch.role_name));
			batch.role = batch.role_name;
		}
		batch.limit = batch_limit(batch.kind, role);
	}
	return true;
}

void
received_take(Partition *partition, const BridgeEvent *event, PartitionNews news)
{
	Received   *received = &batch.received[batch.n++];
	MemoryContext old = MemoryContextSwitchTo(batch.context);

	memset(received, 0, sizeof(Received));
	received->partition = partition;
	received->generation = partition->generation;
	if (news == PARTITION_UNREADABLE_RECORD)
	{
		received->place.offset = partition->read - 1;
		received->problem = "it can't be read";
	}
	else
	{
		received->place = partition_place(&event->record);
		batch.bytes += event->record.key_len + event->record.value_len;
		if (partition->row.kind == READ_RESULTS)
			take_result(received, event);
		else
			received->record = copy_record(&event->record);
	}
	MemoryContextSwitchTo(old);
}

static void
take_result(Received *received, const BridgeEvent *event)
{
	received->problem = result_parse(&event->record, &received->result);
	if (received->problem != NULL)
		log_bad(received->partition, event->record.offset, received->problem);
}

static char *
copy_bytes(const char *bytes, int len)
{
	char	   *copy;

	if (bytes == NULL)
		return NULL;
	copy = palloc(len + 1);
	memcpy(copy, bytes, len);
	copy[len] = '\0';
	return copy;
}

static BridgeRecord
copy_record(const BridgeRecord *record)
{
	BridgeRecord copy = *record;

	copy.topic = pstrdup(record->topic);
	copy.key = copy_bytes(record->key, record->key_len);
	copy.value = copy_bytes(record->value, record->value_len);
	copy.headers = palloc(Max(record->nheaders, 1) * sizeof(BridgeHeader));
	for (int i = 0; i < record->nheaders; i++)
	{
		copy.headers[i] = record->headers[i];
		copy.headers[i].name = pstrdup(record->headers[i].name);
		copy.headers[i].value = copy_bytes(record->headers[i].value,
										   record->headers[i].len);
	}
	return copy;
}

static void
log_bad(Partition *partition, int64 offset, const char *problem)
{
	ReadTopic  *topic = read_topic_of(partition);
	TimestampTz now = GetCurrentTimestamp();

	if (topic->bad_logged_at != 0 &&
		!TimestampDifferenceExceeds(topic->bad_logged_at, now, BAD_LOG_INTERVAL))
		return;
	topic->bad_logged_at = now;
	ereport(WARNING,
			(errmsg("bad result in topic \"%s\" partition %d at offset " INT64_FORMAT ": %s",
					topic->name, partition->row.partition, offset, problem),
			 errdetail("It is counted and passed over; others within a minute are not logged.")));
}

/* ---------------------------------------------------------------------
 * Applying it
 * --------------------------------------------------------------------- */

void
received_apply(Worker *worker)
{
	int			n = batch.n;
	int			done = 0;
	int			transactions = 0;

	if (n == 0 && !anything_to_save())
		return;

	/* others don't wait for what the handlers take */
	if (worker->bridge != NULL)
		bridge_push(worker->bridge);

	/* read_topics_unload and the like find the batch empty */
	batch.n = 0;
	if (n == 0)
		batch.role = NULL;
	do
	{
		Received   *rest = batch.received + done;
		int			applied = apply_some(worker, rest, n - done, n - done == 1);

		if (applied < 0)
		{
			for (int i = 0; i < n - done; i++)
				(void) apply_some(worker, &rest[i], 1, true);
			applied = n - done;
			transactions++;
		}
		done += applied;
		transactions++;
	} while (done < n);
	adapt_limit(n, transactions == 1);
	batch.bytes = 0;
	MemoryContextReset(batch.context);
}

/* False, with no transaction begun, if the records have to be read again */
static bool
begin_applying(Worker *worker, Received *received, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (!received_is_void(&received[i]))
			received[i].partition->now.dirty = true;
	}
	if (!worker_begin(worker))
	{
		read_topics_unload(worker->bridge);
		return false;
	}
	for_dirty(partition_remember);
	if (lock_positions(worker))
		return true;

	SPI_finish();
	AbortCurrentTransaction();
	ereport(LOG,
			(errmsg("the positions in the topics were changed by somebody else"),
			 errdetail("Reading goes on from there.")));
	read_topics_unload(worker->bridge);
	return false;
}

/*
 * Applies the first of them, returns how many.  -1: what went wrong at the end
 * of the transaction has to be found out, with each of them alone.
 */
static int
apply_some(Worker *worker, Received *received, int n, bool alone)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;
	volatile int applied = n;

	if (!begin_applying(worker, received, n))
		return n;
	PG_TRY();
	{
		applied = apply_in_transaction(worker, received, n, alone);
	}
	PG_CATCH();
	{
		if (batch.role == NULL || (alone && batch.kind == READ_RESULTS))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		handler_tidy_session();
		for_dirty(partition_restore);
	}
	PG_END_TRY();
	if (error == NULL)
	{
		handler_tidy_session();
		for_dirty(partition_saved);
		return applied;
	}
	applied = failed(worker, received, n, alone, error);
	FreeErrorData(error);
	return applied;
}

/*
 * It wasn't the call of a handler that failed.  For a record that was alone it
 * counts as if it had been: whatever it is, it must not stop all the others.
 */
static int
failed(Worker *worker, Received *received, int n, bool alone, const ErrorData *error)
{
	if (!alone)
	{
		ereport(LOG,
				(errmsg("a batch of %d records is handled again, each alone: %s",
						n, error->message)));
		return -1;
	}
	ereport(WARNING,
			(errmsg("could not handle the record at offset " INT64_FORMAT
					" of topic \"%s\" partition %d: %s", received->place.offset,
					received->partition->row.topic, received->partition->row.partition,
					error->message)));
	if (begin_applying(worker, received, 1))
	{
		subscribed_failed(worker, received, error);
		save_positions();
		worker_commit(worker);
		for_dirty(partition_saved);
	}
	return 1;
}

static int
apply_in_transaction(Worker *worker, Received *received, int n, bool alone)
{
	int			applied = n;
	int			nconfirmed = 0;
	int			nfailed = 0;

	consumer_load_config();
	if (batch.kind == READ_RESULTS)
		results_apply(received, n, alone, &nconfirmed, &nfailed);
	else
		applied = subscribed_handle(worker, received, n, alone);
	save_positions();
	worker_commit(worker);

	pg_atomic_fetch_add_u64(&worker->db->confirmed, nconfirmed);
	pg_atomic_fetch_add_u64(&worker->db->failed, nfailed);
	if (n > 0)
		worker_bridge_proved(worker);
	return applied;
}

static void
for_dirty(void (*what) (Partition *))
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
			what(partition);
	}
}

static bool
anything_to_save(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
			return true;
	}
	return false;
}

/*
 * Locks the rows of all partitions that the batch is about.  False if one of
 * them isn't as we left it.  One that somebody has locked is left for later.
 */
static bool
lock_positions(Worker *worker)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (!partition->now.dirty)
			continue;
		switch (store_offset_lock(&partition->row, &partition->now.state))
		{
			case OFFSET_LOCKED:
				break;
			case OFFSET_BUSY:
				partition_put_off(partition, worker->bridge);
				break;
			case OFFSET_CHANGED:
				return false;
		}
	}
	return true;
}

static void
save_positions(void)
{
	PartitionScan scan = {0};
	Partition  *partition;

	while ((partition = read_topics_scan(&scan)) != NULL)
	{
		if (partition->now.dirty)
			store_offset_save(&partition->row, &partition->now.state,
							  &partition->now.counts);
	}
}
