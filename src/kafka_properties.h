/*-------------------------------------------------------------------------
 *
 * kafka_properties.h
 *	  Which properties of librdkafka may be set, and why others may not.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KAFKA_PROPERTIES_H
#define OUTBOX_KAFKA_PROPERTIES_H

typedef enum PropertyVerdict
{
	PROPERTY_ALLOWED,
	PROPERTY_SECRET,			/* only in the secrets file */
	PROPERTY_UNKNOWN_SECRET,	/* by its name; nowhere */
	PROPERTY_REFUSED,
	PROPERTY_BAD_VALUE
} PropertyVerdict;

/* Could it be the name of a property at all?  If not, it isn't repeated. */
extern bool kafka_property_wellformed(const char *name);

/*
 * May it be set to that value?  If not, detail says why, a sentence without
 * the value, and hint what to do, or is NULL.
 */
extern PropertyVerdict kafka_property_verdict(const char *name, const char *value,
											  const char **detail, const char **hint);

#endif							/* OUTBOX_KAFKA_PROPERTIES_H */
