/*-------------------------------------------------------------------------
 *
 * topic_admin.h
 *	  What a publisher does about topics beside publishing to them: creates
 *	  those asked for, and keeps what the brokers tell of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPIC_ADMIN_H
#define OUTBOX_TOPIC_ADMIN_H

#include "worker.h"

/* Hands the open requests of outbox.create_topic to the bridge; needs SPI */
extern void topic_admin_requests(Worker *worker);

/* The bridge is a new one: it knows of no request or question */
extern void topic_admin_restart(void);

/* Asks the brokers about a topic, unless that was done a while ago */
extern void topic_admin_ask(Worker *worker, const char *topic);

/* BRIDGE_TOPIC and BRIDGE_ADMIN_DONE: to be written by the next save */
extern void topic_admin_event(const BridgeEvent *event);

extern bool topic_admin_is_dirty(void);

/* Writes what the events said; needs SPI */
extern void topic_admin_save(void);

#endif							/* OUTBOX_TOPIC_ADMIN_H */
