/*-------------------------------------------------------------------------
 *
 * result_route.h
 *	  Which results count: those on the result topic of the message's own
 *	  topic, or on one it had when the message was captured.
 *
 * A change of the result topic takes effect for the messages captured from
 * then on; those before it may be answered on the former one as well as on
 * the new one.  So the former one stays read until no such message is left in
 * the log.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESULT_ROUTE_H
#define OUTBOX_RESULT_ROUTE_H

#include "utils/uuid.h"

/* Makes changes of the configuration be noticed; once a process */
extern void routes_init(void);

/* True if the configuration may have changed since routes_load */
extern bool routes_stale(void);

/* They are stale now, whatever they were */
extern void routes_distrust(void);

/* Reads the configuration; needs a transaction and SPI */
extern void routes_load(void);

/* The topics to read, each once, ascending; valid until the next routes_load */
extern int	routes_result_topics(const char *const **topics);

/* Does a result on result_topic count for that message? */
extern bool route_counts(const char *topic, const char *result_topic,
						 const pg_uuid_t *id);

#endif							/* OUTBOX_RESULT_ROUTE_H */
