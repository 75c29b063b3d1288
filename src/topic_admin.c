/*-------------------------------------------------------------------------
 *
 * topic_admin.c
 *	  What a publisher does about topics beside publishing to them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "announce.h"
#include "batch.h"
#include "held.h"
#include "safe_text.h"
#include "store.h"
#include "topic_admin.h"

/* What a broker told of a topic is asked again after this long (ms) */
#define ASK_INTERVAL	300000

typedef struct AskedTopic
{
	char		topic[OUTBOX_TOPIC_LEN + 1];	/* the key: must be first */
	TimestampTz asked_at;
	bool		dirty;			/* the brokers answered: */
	int32		partitions;
	int32		leaderless;
	int32		replication_factor;
	int32		min_insync_replicas;
} AskedTopic;

typedef struct Request
{
	uint64		number;			/* the key: must be first */
	char		topic[OUTBOX_TOPIC_LEN + 1];
	bool		handed;			/* to the bridge */
	bool		repeated;		/* to one before, which may have done it */
	bool		done;
	char		error[WORKER_TEXT_LEN];
} Request;

static HTAB *asked = NULL;
static HTAB *requests = NULL;

static HTAB *
make_table(const char *name, Size key, Size entry, int flags)
{
	HASHCTL		ctl = {0};

	ctl.keysize = key;
	ctl.entrysize = entry;
	return hash_create(name, 16, &ctl, HASH_ELEM | flags);
}

void
topic_admin_restart(void)
{
	HASH_SEQ_STATUS status;
	Request    *request;

	if (requests == NULL)
		return;
	hash_seq_init(&status, requests);
	while ((request = hash_seq_search(&status)) != NULL)
	{
		request->repeated |= request->handed;
		request->handed = false;
	}
}

/* ---------------------------------------------------------------------
 * Creating topics
 * --------------------------------------------------------------------- */

/* The members of a flat object as properties */
static KafkaProperty *
read_properties(Jsonb *config, int *n)
{
	KafkaProperty *properties = palloc((JB_ROOT_COUNT(config) + 1) * sizeof(KafkaProperty));
	JsonbIterator *iterator = JsonbIteratorInit(&config->root);
	JsonbIteratorToken token;
	JsonbValue	value;

	*n = 0;
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			properties[*n].name = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE && value.type == jbvString)
			properties[(*n)++].value = pnstrdup(value.val.string.val, value.val.string.len);
		else if (token == WJB_VALUE)
			properties[(*n)++].value = JsonbToCString(NULL, &JsonbValueToJsonb(&value)->root, 0);
	}
	return properties;
}

void
topic_admin_requests(Worker *worker)
{
	uint64		rows;

	if (requests == NULL)
		requests = make_table("outbox requests", sizeof(uint64), sizeof(Request), HASH_BLOBS);
	rows = store_execute("SELECT request, topic, partitions, replication_factor, config"
						 " FROM outbox.topic_request WHERE finished_at IS NULL"
						 " ORDER BY request", 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		bool		found;
		uint64		number = DatumGetInt64(SPI_getbinval(tuple, desc, 1, &isnull));
		Request    *request = hash_search(requests, &number, HASH_ENTER, &found);
		KafkaProperty *config;
		int			nconfig;

		if (!found)
		{
			strlcpy(request->topic, SPI_getvalue(tuple, desc, 2), sizeof(request->topic));
			request->handed = request->repeated = request->done = false;
		}
		if (request->handed || request->done)
			continue;
		request->handed = true;
		config = read_properties(DatumGetJsonbP(SPI_getbinval(tuple, desc, 5, &isnull)),
								 &nconfig);
		bridge_create_topic(worker->bridge, number, request->topic,
							DatumGetInt32(SPI_getbinval(tuple, desc, 3, &isnull)),
							DatumGetInt32(SPI_getbinval(tuple, desc, 4, &isnull)),
							config, nconfig);
	}
}

/*
 * A bridge that died may have had the topic created before it could say so: to
 * the one after it the brokers say that it is there already.
 */
static void
request_done(const BridgeEvent *event)
{
	Request    *request = NULL;
	bool		created;

	if (requests != NULL)
		request = hash_search(requests, &event->request, HASH_FIND, NULL);
	if (request == NULL)
		return;
	request->done = true;
	created = event->error[0] == '\0' ||
		(request->repeated && strcmp(event->error, "TOPIC_ALREADY_EXISTS") == 0);
	if (created)
		request->error[0] = '\0';
	else
		safe_text_printf(request->error, sizeof(request->error), "%s: %s", event->error, event->text);
	ereport(LOG,
			(created ?
			 errmsg("topic \"%s\" was created", request->topic) :
			 errmsg("topic \"%s\" could not be created: %s", request->topic, request->error)));
	held_try_now(request->topic);
}

static void
save_request(Request *request)
{
	static const Oid types[] = {INT8OID, TEXTOID};
	Datum		values[2];

	values[0] = Int64GetDatum(request->number);
	values[1] = CStringGetTextDatum(request->error);
	store_execute("UPDATE outbox.topic_request SET finished_at = pg_catalog.clock_timestamp(),"
				  " error = nullif($2, '') WHERE request = $1", 2, types, values, NULL);
}

/* ---------------------------------------------------------------------
 * What the brokers tell
 * --------------------------------------------------------------------- */

void
topic_admin_ask(Worker *worker, const char *topic)
{
	char		key[OUTBOX_TOPIC_LEN + 1] = {0};
	TimestampTz now = GetCurrentTimestamp();
	AskedTopic *entry;
	bool		found;

	if (asked == NULL)
		asked = make_table("outbox asked topics", sizeof(key), sizeof(AskedTopic),
						   HASH_STRINGS);
	strlcpy(key, topic, sizeof(key));
	entry = hash_search(asked, key, HASH_ENTER, &found);
	if (found && !TimestampDifferenceExceeds(entry->asked_at, now, ASK_INTERVAL))
		return;
	entry->asked_at = now;
	if (!found)
		entry->dirty = false;
	bridge_ask_topic(worker->bridge, topic);
}

static void
topic_told(const BridgeEvent *event)
{
	AskedTopic *entry = NULL;

	if (asked != NULL)
		entry = hash_search(asked, event->topic, HASH_FIND, NULL);
	if (entry == NULL || event->topic_class != OUTCOME_OK)
		return;
	entry->dirty = true;
	entry->partitions = event->partitions;
	entry->leaderless = event->leaderless;
	entry->replication_factor = event->replication_factor;
	entry->min_insync_replicas = event->min_insync_replicas;
}

void
topic_admin_event(const BridgeEvent *event)
{
	if (event->type == BRIDGE_TOPIC)
		topic_told(event);
	else if (event->type == BRIDGE_ADMIN_DONE)
		request_done(event);
}

static void
save_topic(AskedTopic *entry)
{
	static const Oid types[] = {TEXTOID, INT4OID, INT4OID, INT4OID, INT4OID};
	Datum		values[5];

	values[0] = CStringGetTextDatum(entry->topic);
	values[1] = Int32GetDatum(entry->partitions);
	values[2] = Int32GetDatum(entry->leaderless);
	values[3] = Int32GetDatum(entry->replication_factor);
	values[4] = Int32GetDatum(entry->min_insync_replicas);
	store_execute("INSERT INTO outbox.topic_state AS s VALUES"
				  " ($1, nullif($2, -1), nullif($3, -1), nullif($4, -1), nullif($5, -1),"
				  "  pg_catalog.clock_timestamp())"
				  " ON CONFLICT ON CONSTRAINT topic_state_pkey DO UPDATE"
				  " SET partitions = excluded.partitions, leaderless = excluded.leaderless,"
				  "  replication_factor = excluded.replication_factor,"
				  "  min_insync_replicas = excluded.min_insync_replicas,"
				  "  checked_at = excluded.checked_at", 5, types, values, NULL);
}

bool
topic_admin_is_dirty(void)
{
	HASH_SEQ_STATUS status;
	AskedTopic *entry;
	Request    *request;
	bool		dirty = false;

	if (asked != NULL)
	{
		hash_seq_init(&status, asked);
		while ((entry = hash_seq_search(&status)) != NULL)
			dirty = dirty || entry->dirty;
	}
	if (requests != NULL)
	{
		hash_seq_init(&status, requests);
		while ((request = hash_seq_search(&status)) != NULL)
			dirty = dirty || request->done;
	}
	return dirty;
}

static int
compare_asked(const void *a, const void *b)
{
	return strcmp((*(AskedTopic *const *) a)->topic, (*(AskedTopic *const *) b)->topic);
}

void
topic_admin_save(void)
{
	HASH_SEQ_STATUS status;
	AskedTopic *entry;
	AskedTopic **entries;
	int			n = 0;
	Request    *request;

	if (asked != NULL)
	{
		/* in one order: another publisher may save the same ones */
		entries = palloc(Max(hash_get_num_entries(asked), 1) * sizeof(AskedTopic *));
		hash_seq_init(&status, asked);
		while ((entry = hash_seq_search(&status)) != NULL)
		{
			if (entry->dirty)
				entries[n++] = entry;
		}
		qsort(entries, n, sizeof(AskedTopic *), compare_asked);
		for (int i = 0; i < n; i++)
		{
			save_topic(entries[i]);
			entries[i]->dirty = false;
		}
	}
	if (requests != NULL)
	{
		hash_seq_init(&status, requests);
		while ((request = hash_seq_search(&status)) != NULL)
		{
			if (!request->done)
				continue;
			save_request(request);

			/* the other publishers may have messages for it, too */
			announce_wake_at_commit();
			hash_search(requests, &request->number, HASH_REMOVE, NULL);
		}
	}
}

void
publisher_event(Worker *worker, const BridgeEvent *event)
{
	if (event->type == BRIDGE_TOPIC)
	{
		held_answer(event);
		topic_admin_event(event);
	}
	else if (event->type == BRIDGE_ADMIN_DONE)
		topic_admin_event(event);
}
