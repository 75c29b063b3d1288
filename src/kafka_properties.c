/*-------------------------------------------------------------------------
 *
 * kafka_properties.c
 *	  Which properties of librdkafka may be set, and why others may not.
 *
 * An allow-list: a property that a later librdkafka brings is refused until
 * someone has looked at it.  doc/kafka-config.md shows the same list.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "kafka_config.h"
#include "kafka_properties.h"

typedef enum PropertyKind
{
	BOTH,						/* allowed, for producers and consumers */
	PRODUCER,
	CONSUMER,
	SECRET,
	ORDER,						/* the order of messages rests on it */
	PROMISE,					/* so does another promise */
	CODE,						/* makes the client run or load something */
	MANAGED						/* outbox sets it; see the hint */
} PropertyKind;

typedef struct Property
{
	const char *name;
	PropertyKind kind;
	const char *hint;
} Property;

static const Property properties[] = {
	/* Who we are and how we connect */
	{"client.id", BOTH},
	{"client.rack", CONSUMER},
	{"client.dns.lookup", BOTH},
	{"broker.address.family", BOTH},
	{"broker.address.ttl", BOTH},
	{"connections.max.idle.ms", BOTH},
	{"reconnect.backoff.ms", BOTH},
	{"reconnect.backoff.max.ms", BOTH},
	{"retry.backoff.ms", BOTH},
	{"retry.backoff.max.ms", BOTH},
	{"request.timeout.ms", PRODUCER},
	{"socket.timeout.ms", BOTH},
	{"socket.connection.setup.timeout.ms", BOTH},
	{"socket.keepalive.enable", BOTH},
	{"socket.nagle.disable", BOTH},
	{"socket.max.fails", BOTH},
	{"socket.send.buffer.bytes", BOTH},
	{"socket.receive.buffer.bytes", BOTH},
	{"metadata.max.age.ms", BOTH},
	{"topic.metadata.refresh.interval.ms", BOTH},
	{"topic.metadata.refresh.fast.interval.ms", BOTH},
	{"topic.metadata.refresh.sparse", BOTH},

	/* Encryption and authentication */
	{"security.protocol", BOTH},
	{"sasl.mechanism", BOTH},
	{"sasl.mechanisms", BOTH},
	{"sasl.username", BOTH},
	{"sasl.oauthbearer.method", BOTH},
	{"sasl.oauthbearer.client.id", BOTH},
	{"sasl.oauthbearer.scope", BOTH},
	{"sasl.oauthbearer.extensions", BOTH},
	{"sasl.oauthbearer.token.endpoint.url", BOTH},
	{"ssl.ca.location", BOTH},
	{"ssl.certificate.location", BOTH},
	{"ssl.key.location", BOTH},
	{"ssl.keystore.location", BOTH},
	{"ssl.crl.location", BOTH},
	{"ssl.cipher.suites", BOTH},
	{"ssl.curves.list", BOTH},
	{"ssl.sigalgs.list", BOTH},
	{"ssl.endpoint.identification.algorithm", BOTH},
	{"enable.ssl.certificate.verification", BOTH},

	/* How much, how often */
	{"compression.type", PRODUCER},
	{"compression.codec", PRODUCER},
	{"compression.level", PRODUCER},
	{"allow.auto.create.topics", PRODUCER},
	{"fetch.min.bytes", CONSUMER},
	{"fetch.max.bytes", CONSUMER},
	{"fetch.message.max.bytes", CONSUMER},
	{"max.partition.fetch.bytes", CONSUMER},
	{"fetch.wait.max.ms", CONSUMER},
	{"fetch.error.backoff.ms", CONSUMER},
	{"fetch.queue.backoff.ms", CONSUMER},
	{"receive.message.max.bytes", CONSUMER},
	{"queued.min.messages", CONSUMER},

	/* What the client logs */
	{"debug", BOTH},
	{"log_level", BOTH},
	{"log.connection.close", BOTH},

	{"sasl.password", SECRET},
	{"sasl.oauthbearer.client.secret", SECRET},
	{"ssl.key.password", SECRET},
	{"ssl.keystore.password", SECRET},

	{"enable.idempotence", ORDER},
	{"acks", ORDER},
	{"request.required.acks", ORDER},
	{"message.timeout.ms", ORDER, "Use outbox.ack_timeout."},
	{"delivery.timeout.ms", ORDER, "Use outbox.ack_timeout."},
	{"max.in.flight", ORDER},
	{"max.in.flight.requests.per.connection", ORDER},
	{"message.send.max.retries", ORDER},
	{"retries", ORDER},
	{"batch.size", ORDER},
	{"batch.num.messages", ORDER},
	{"partitioner", ORDER},
	{"linger.ms", ORDER},
	{"queue.buffering.max.ms", ORDER},
	{"enable.gapless.guarantee", ORDER},

	{"isolation.level", PROMISE},
	{"auto.offset.reset", PROMISE},
	{"enable.auto.commit", PROMISE},
	{"auto.commit.enable", PROMISE},
	{"enable.auto.offset.store", PROMISE},
	{"enable.partition.eof", PROMISE},
	{"check.crcs", PROMISE},

	{"plugin.library.paths", CODE},
	{"sasl.kerberos.kinit.cmd", CODE},
	{"sasl.kerberos.principal", CODE},
	{"sasl.kerberos.keytab", CODE},
	{"sasl.kerberos.service.name", CODE},
	{"ssl.engine.location", CODE},
	{"ssl.engine.id", CODE},
	{"ssl.providers", CODE},

	{"bootstrap.servers", MANAGED, "Use outbox.bootstrap_servers."},
	{"metadata.broker.list", MANAGED, "Use outbox.bootstrap_servers."},
	{"message.max.bytes", MANAGED, "Use outbox.max_message_bytes."},
	{"max.request.size", MANAGED, "Use outbox.max_message_bytes."},
	{"group.id", MANAGED, "outbox keeps its offsets in the database and needs no consumer group."},
	{"transactional.id", MANAGED, "Kafka transactions are not used."},
	{"transaction.timeout.ms", MANAGED, "Kafka transactions are not used."},
	{"queue.buffering.max.messages", MANAGED},
	{"queue.buffering.max.kbytes", MANAGED},
	{"queued.max.messages.kbytes", MANAGED},
	{"statistics.interval.ms", MANAGED, "Query outbox.stat."},
	{"log.queue", MANAGED},
	{"topic.metadata.propagation.max.ms", MANAGED},
	{"ssl.key.pem", MANAGED, "Put the key into a file of its own, and its path into ssl.key.location."},
	{"ssl.certificate.pem", MANAGED, "Put the certificate into a file, and its path into ssl.certificate.location."},
	{"ssl.ca.pem", MANAGED, "Put the certificates into a file, and its path into ssl.ca.location."},
};

static const Property *find_property(const char *name);
static bool looks_secret(const char *name);
static bool mechanism_allowed(const char *value);

static const Property *
find_property(const char *name)
{
	for (int i = 0; i < lengthof(properties); i++)
	{
		if (strcmp(properties[i].name, name) == 0)
			return &properties[i];
	}
	return NULL;
}

/* A name we don't know, but whose value nobody should see */
static bool
looks_secret(const char *name)
{
	static const char *const words[] = {"password", "passwd", "secret",
	"passphrase", "token", "private", "pem", "jaas", "credential"};
	char		lower[NAMEDATALEN];

	strlcpy(lower, name, sizeof(lower));
	for (char *c = lower; *c != '\0'; c++)
		*c = pg_tolower((unsigned char) *c);
	for (int i = 0; i < lengthof(words); i++)
	{
		if (strstr(lower, words[i]) != NULL)
			return true;
	}
	return false;
}

static bool
mechanism_allowed(const char *value)
{
	return strcmp(value, "PLAIN") == 0 || strcmp(value, "SCRAM-SHA-256") == 0 ||
		strcmp(value, "SCRAM-SHA-512") == 0 || strcmp(value, "OAUTHBEARER") == 0;
}

bool
kafka_property_wellformed(const char *name)
{
	size_t		len = strlen(name);

	return len > 0 && len < NAMEDATALEN &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

PropertyVerdict
kafka_property_verdict(const char *name, const char *value,
					   const char **detail, const char **hint)
{
	const Property *property = find_property(name);

	*hint = NULL;
	if (property == NULL)
	{
		*detail = "It is no property of librdkafka that outbox knows to be harmless.";
		*hint = "The documentation of outbox lists those that can be set.";
		return looks_secret(name) ? PROPERTY_UNKNOWN_SECRET : PROPERTY_REFUSED;
	}
	*hint = property->hint;
	switch (property->kind)
	{
		case BOTH:
		case PRODUCER:
		case CONSUMER:
			break;
		case SECRET:
			*detail = "It is a secret.";
			return PROPERTY_SECRET;
		case ORDER:
			*detail = "outbox sets it, since the order of messages rests on it.";
			return PROPERTY_REFUSED;
		case PROMISE:
			*detail = "outbox sets it, since no result may be lost or applied twice.";
			return PROPERTY_REFUSED;
		case CODE:
			*detail = "It makes the client load a library or run a command.";
			return PROPERTY_REFUSED;
		case MANAGED:
			*detail = "outbox sets it by itself.";
			return PROPERTY_REFUSED;
	}
	if (strncmp(name, "sasl.mechanism", 14) == 0 && !mechanism_allowed(value))
	{
		*detail = "The mechanisms are PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and OAUTHBEARER.";
		return PROPERTY_BAD_VALUE;
	}
	if (strcmp(name, "sasl.oauthbearer.method") == 0 && strcmp(value, "oidc") != 0)
	{
		*detail = "The method is oidc.";
		return PROPERTY_BAD_VALUE;
	}
	return PROPERTY_ALLOWED;
}

bool
kafka_property_for(const char *name, char role)
{
	const Property *property = find_property(name);

	if (property == NULL)
		return true;
	switch (property->kind)
	{
		case PRODUCER:
			return role == 'p';
		case CONSUMER:
			return role == 'c';
		default:
			return true;
	}
}
