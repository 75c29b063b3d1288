/*-------------------------------------------------------------------------
 *
 * kafka_config.h
 *	  What outbox.bootstrap_servers, outbox.kafka_config and the secrets file
 *	  may say to Kafka's client.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KAFKA_CONFIG_H
#define OUTBOX_KAFKA_CONFIG_H

#include "utils/guc.h"

typedef struct KafkaProperty
{
	char	   *name;
	char	   *value;
} KafkaProperty;

/* GUC check hooks: refuse what isn't allowed, never repeating a value */
extern bool kafka_config_check(char **newval, void **extra, GucSource source);
extern bool kafka_secrets_file_check(char **newval, void **extra, GucSource source);

/*
 * All properties for a new bridge, from the settings and the secrets file,
 * palloc'd in the current context.  Raises ERROR (with hint) when the secrets
 * file can't be used: wrong owner, mode, or content.
 */
extern KafkaProperty *kafka_config_load(int *nproperties);

/* Does a property mean anything to a producer ('p') or consumer ('c')? */
extern bool kafka_property_for(const char *name, char role);

/* Overwrites and frees what kafka_config_load returned */
extern void kafka_config_forget(KafkaProperty *properties, int nproperties);

#endif							/* OUTBOX_KAFKA_CONFIG_H */
