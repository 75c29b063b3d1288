/*-------------------------------------------------------------------------
 *
 * result_route.c
 *	  Which results count for which messages.
 *
 * The present result topics are in outbox.topic_config.  A trigger there puts
 * those that were replaced into outbox.former_result_topic, and the consumer
 * that first sees such a row writes into it the id that the clock of the
 * message ids has reached.  That bound is high enough: a publisher that told
 * anybody of the former topic had a snapshot older than the change, so all
 * that it published was captured before the change could be seen.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "message_id.h"
#include "relation.h"
#include "result_route.h"
#include "store.h"

/*
 * Read again this often (ms) even if nothing seemed to change: a restored
 * dump, for one, fills the tables without telling anybody.
 */
#define ROUTES_MAX_AGE	60000

typedef struct Route
{
	const char *topic;
	const char *result_topic;
	bool		bounded;		/* counts for messages below "until" only */
	pg_uuid_t	until;
} Route;

static MemoryContext context = NULL;
static Route *routes = NULL;	/* by topic and result topic */
static int	nroutes = 0;
static const char **topics = NULL;
static int	ntopics = 0;

static bool stale = true;
static TimestampTz loaded_at = 0;
static Oid	config_relid = InvalidOid;

static void
config_inval(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == config_relid)
		stale = true;
}

void
routes_init(void)
{
	CacheRegisterRelcacheCallback(config_inval, (Datum) 0);
}

bool
routes_stale(void)
{
	return stale ||
		TimestampDifferenceExceeds(loaded_at, GetCurrentTimestamp(), ROUTES_MAX_AGE);
}

void
routes_distrust(void)
{
	stale = true;
}

/*
 * Forgets former result topics whose messages are all gone, bounds new ones.
 * Every consumer does this before it reads the routes, so that none is left
 * with a row that has no bound: it waits for the one that is just setting it,
 * and then finds nothing to do.
 */
static void
tend_former_topics(void)
{
	static const Oid types[] = {UUIDOID};
	pg_uuid_t	now;
	Datum		values[1];

	if (store_execute("SELECT FROM outbox.former_result_topic LIMIT 1",
					  0, NULL, NULL, NULL) == 0)
		return;

	/* through the parent, but rarely, and no further than the first row */
	store_execute("DELETE FROM outbox.former_result_topic AS f"
				  " WHERE f.until IS NOT NULL AND NOT EXISTS"
				  "  (SELECT FROM outbox.log AS l WHERE l.id < f.until)",
				  0, NULL, NULL, NULL);

	message_floor_ensure();
	message_id_lowest(message_clock_read() + 1, &now);
	values[0] = UUIDPGetDatum(&now);
	store_execute("UPDATE outbox.former_result_topic SET until = $1"
				  " WHERE until IS NULL", 1, types, values, NULL);
}

static int
compare_routes(const void *a, const void *b)
{
	const Route *left = a;
	const Route *right = b;
	int			order = strcmp(left->topic, right->topic);

	return order != 0 ? order : strcmp(left->result_topic, right->result_topic);
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* Copies the rows of the query that was just run */
static void
copy_routes(int n)
{
	routes = palloc(Max(n, 1) * sizeof(Route));
	topics = palloc(Max(n, 1) * sizeof(char *));
	for (nroutes = 0; nroutes < n; nroutes++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[nroutes];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Route	   *route = &routes[nroutes];
		bool		isnull;
		Datum		until = SPI_getbinval(tuple, desc, 3, &isnull);

		route->topic = TextDatumGetCString(SPI_getbinval(tuple, desc, 1, &isnull));
		route->result_topic = TextDatumGetCString(SPI_getbinval(tuple, desc, 2, &isnull));
		(void) SPI_getbinval(tuple, desc, 3, &isnull);
		route->bounded = !isnull;
		if (route->bounded)
			route->until = *DatumGetUUIDP(until);
		topics[nroutes] = route->result_topic;
	}
	qsort(routes, nroutes, sizeof(Route), compare_routes);
	qsort(topics, nroutes, sizeof(char *), compare_names);
	ntopics = 0;
	for (int i = 0; i < nroutes; i++)
	{
		if (ntopics == 0 || strcmp(topics[ntopics - 1], topics[i]) != 0)
			topics[ntopics++] = topics[i];
	}
}

void
routes_load(void)
{
	MemoryContext old;
	int			n;

	/* before the tables are read: a change after that makes them stale again */
	config_relid = outbox_relation_oid("topic_config");
	stale = false;
	tend_former_topics();
	n = store_execute("SELECT topic, result_topic, NULL::uuid"
					  " FROM outbox.topic_config WHERE result_topic IS NOT NULL"
					  " UNION ALL"
					  " SELECT f.topic, f.result_topic, f.until"
					  " FROM outbox.former_result_topic AS f"
					  " WHERE NOT EXISTS (SELECT FROM outbox.topic_config AS c"
					  "  WHERE c.topic = f.topic AND c.result_topic = f.result_topic)",
					  0, NULL, NULL, NULL);

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "outbox routes",
										ALLOCSET_SMALL_SIZES);
	nroutes = ntopics = 0;
	MemoryContextReset(context);
	old = MemoryContextSwitchTo(context);
	copy_routes(n);
	MemoryContextSwitchTo(old);
	loaded_at = GetCurrentTimestamp();
}

int
routes_result_topics(const char *const **names)
{
	*names = topics;
	return ntopics;
}

bool
route_counts(const char *topic, const char *result_topic, const pg_uuid_t *id)
{
	Route		key = {topic, result_topic};
	const Route *route = nroutes == 0 ? NULL :
		bsearch(&key, routes, nroutes, sizeof(Route), compare_routes);

	return route != NULL &&
		(!route->bounded || memcmp(id, &route->until, UUID_LEN) < 0);
}
