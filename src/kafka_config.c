/*-------------------------------------------------------------------------
 *
 * kafka_config.c
 *	  What outbox.bootstrap_servers, outbox.kafka_config and the secrets file
 *	  may say to Kafka's client.
 *
 * Both texts are lists of name=value: the setting's are separated by
 * semicolons or line ends, the file's by line ends alone.  What may be set is
 * listed in kafka_properties.c.
 *
 * A refused value is never repeated: it may be, or contain, a secret.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/guc.h"

#include "kafka_config.h"
#include "kafka_properties.h"
#include "outbox.h"

#define MAX_PROPERTIES		128
#define MAX_SECRETS_SIZE	65536

static emit_log_hook_type prev_emit_log_hook = NULL;

static void hide_statement(ErrorData *edata);
static char *trim(char *text);
static bool next_pair(char **cursor, const char *separators, char **name, char **value);
static bool refuse_pair(int number, const char *name, const char *value);
static void add_property(KafkaProperty *properties, int *n, const char *name, const char *value);
static void load_secrets(KafkaProperty *properties, int *n, const char *path);
static void check_secrets_file(int fd, const char *path);
static void parse_secrets(KafkaProperty *properties, int *n, char *text, const char *path);
static void check_sasl(const KafkaProperty *properties, int n);

/*
 * A refused ALTER SYSTEM is no reason for its statement, with whatever secret
 * it holds, to go into the server log along with the refusal.
 */
static void
hide_statement(ErrorData *edata)
{
	if (edata->message != NULL && strstr(edata->message, "outbox.kafka_config") != NULL)
	{
		edata->hide_stmt = true;
		edata->hide_ctx = true;
	}
	if (prev_emit_log_hook)
		prev_emit_log_hook(edata);
}

static char *
trim(char *text)
{
	char	   *end;

	while (isspace((unsigned char) *text))
		text++;
	end = text + strlen(text);
	while (end > text && isspace((unsigned char) end[-1]))
		end--;
	*end = '\0';
	return text;
}

/*
 * Takes the next pair off a text, which it cuts up.  Empty entries and
 * comments are passed over.  The value is NULL where there is no "=".
 */
static bool
next_pair(char **cursor, const char *separators, char **name, char **value)
{
	while (**cursor != '\0')
	{
		char	   *entry = *cursor;
		size_t		len = strcspn(entry, separators);

		*cursor = entry + len + (entry[len] != '\0' ? 1 : 0);
		entry[len] = '\0';
		entry = trim(entry);
		if (*entry == '\0' || *entry == '#')
			continue;
		*name = entry;
		*value = strchr(entry, '=');
		if (*value != NULL)
		{
			**value = '\0';
			*value = trim(*value + 1);
			*name = trim(*name);
		}
		return true;
	}
	return false;
}

/*---- the settings ----*/

/* Is that pair of outbox.kafka_config to be refused?  If so, says why. */
static bool
refuse_pair(int number, const char *name, const char *value)
{
	const char *detail;
	const char *hint;

	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	if (value == NULL || *value == '\0' || !kafka_property_wellformed(name))
	{
		GUC_check_errmsg("invalid entry in outbox.kafka_config");
		GUC_check_errdetail("Entry %d is not of the form name=value.", number);
		GUC_check_errhint("Separate the entries with semicolons.");
		return true;
	}
	switch (kafka_property_verdict(name, value, &detail, &hint))
	{
		case PROPERTY_ALLOWED:
			return false;
		case PROPERTY_SECRET:
		case PROPERTY_UNKNOWN_SECRET:
			GUC_check_errmsg("outbox.kafka_config must not contain a secret");
			GUC_check_errdetail("The property \"%s\" is a secret, and settings show up in the server log and in views.",
								name);
			GUC_check_errhint("Put it into the file that outbox.kafka_secrets_file names.");
			return true;
		case PROPERTY_REFUSED:
			GUC_check_errmsg("outbox.kafka_config must not contain the property \"%s\"", name);
			GUC_check_errdetail("%s", detail);
			if (hint != NULL)
				GUC_check_errhint("%s", hint);
			return true;
		case PROPERTY_BAD_VALUE:
			GUC_check_errmsg("invalid value of the property \"%s\" in outbox.kafka_config", name);
			GUC_check_errdetail("%s", detail);
			return true;
	}
	return true;
}

bool
kafka_config_check(char **newval, void **extra, GucSource source)
{
	char	   *copy;
	char	   *cursor;
	char	   *name;
	char	   *value;
	int			number = 0;
	bool		ok = true;
	static bool hooked = false;

	if (!hooked)
	{
		prev_emit_log_hook = emit_log_hook;
		emit_log_hook = hide_statement;
		hooked = true;
	}

	if (*newval == NULL)
		return true;
	copy = pstrdup(*newval);
	cursor = copy;
	while (ok && next_pair(&cursor, ";\n", &name, &value))
		ok = !refuse_pair(++number, name, value);
	explicit_bzero(copy, strlen(*newval));
	pfree(copy);
	return ok;
}

bool
kafka_secrets_file_check(char **newval, void **extra, GucSource source)
{
	if (*newval == NULL || **newval == '\0' || is_absolute_path(*newval))
		return true;
	GUC_check_errcode(ERRCODE_INVALID_PARAMETER_VALUE);
	GUC_check_errmsg("outbox.kafka_secrets_file must be an absolute path");
	return false;
}

/*---- what a new bridge gets ----*/

/* Adds a property; the last one of a name counts */
static void
add_property(KafkaProperty *properties, int *n, const char *name, const char *value)
{
	if (*n == MAX_PROPERTIES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many properties for the Kafka client"),
				 errdetail("At most %d can be set.", MAX_PROPERTIES)));
	properties[*n].name = pstrdup(name);
	properties[*n].value = pstrdup(value);
	++*n;
}

KafkaProperty *
kafka_config_load(int *nproperties)
{
	KafkaProperty *properties = palloc0(MAX_PROPERTIES * sizeof(KafkaProperty));
	char	   *cursor;
	char	   *name;
	char	   *value;

	*nproperties = 0;
	if (outbox_bootstrap_servers != NULL && *outbox_bootstrap_servers != '\0')
		add_property(properties, nproperties, "bootstrap.servers", outbox_bootstrap_servers);

	cursor = pstrdup(outbox_kafka_config ? outbox_kafka_config : "");
	while (next_pair(&cursor, ";\n", &name, &value))
	{
		if (value != NULL)
			add_property(properties, nproperties, name, value);
	}

	PG_TRY();
	{
		if (outbox_kafka_secrets_file != NULL && *outbox_kafka_secrets_file != '\0')
			load_secrets(properties, nproperties, outbox_kafka_secrets_file);
		check_sasl(properties, *nproperties);
	}
	PG_CATCH();
	{
		kafka_config_forget(properties, *nproperties);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return properties;
}

void
kafka_config_forget(KafkaProperty *properties, int nproperties)
{
	for (int i = 0; i < nproperties; i++)
	{
		explicit_bzero(properties[i].value, strlen(properties[i].value));
		pfree(properties[i].value);
		pfree(properties[i].name);
	}
	pfree(properties);
}

/*
 * Without a mechanism librdkafka takes Kerberos, for which it would run a
 * shell command.
 */
static void
check_sasl(const KafkaProperty *properties, int n)
{
	bool		sasl = false;
	bool		mechanism = false;

	for (int i = 0; i < n; i++)
	{
		if (strcmp(properties[i].name, "security.protocol") == 0)
			sasl = pg_strncasecmp(properties[i].value, "sasl", 4) == 0;
		else if (strcmp(properties[i].name, "sasl.mechanism") == 0 ||
				 strcmp(properties[i].name, "sasl.mechanisms") == 0)
			mechanism = true;
	}
	if (sasl && !mechanism)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("property \"sasl.mechanism\" is missing"),
				 errdetail("The property \"security.protocol\" asks for SASL."),
				 errhint("Set sasl.mechanism in outbox.kafka_config to PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.")));
}

/*---- the secrets file ----*/

/* Like a private key of the server: its user's or root's, and nobody else's */
static void
check_secrets_file(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not stat file \"%s\": %m", path)));
	if (!S_ISREG(st.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secrets file \"%s\" is not a regular file", path)));
	if (st.st_uid != geteuid() && st.st_uid != 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secrets file \"%s\" must be owned by the database user or root", path)));
	if ((st.st_uid == geteuid() && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0) ||
		(st.st_uid == 0 && (st.st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secrets file \"%s\" has group or world access", path),
				 errdetail("File must have permissions u=rw (0600) or less if owned by the database user, or permissions u=rw,g=r (0640) or less if owned by root.")));
	if (st.st_size >= MAX_SECRETS_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("secrets file \"%s\" is too large", path),
				 errdetail("At most %d bytes are read.", MAX_SECRETS_SIZE)));
}

/* Outside of transactions too, so that nobody else would close the file */
static void
load_secrets(KafkaProperty *properties, int *n, const char *path)
{
	char	   *text = palloc0(MAX_SECRETS_SIZE + 1);
	int			fd;

	/* Not blocking, should it turn out to be a pipe */
	fd = BasicOpenFile(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | PG_BINARY);
	if (fd < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open secrets file \"%s\": %m", path),
				 errhint("The setting outbox.kafka_secrets_file names it.")));
	PG_TRY();
	{
		check_secrets_file(fd, path);
		if (read(fd, text, MAX_SECRETS_SIZE) < 0)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", path)));
		parse_secrets(properties, n, text, path);
	}
	PG_FINALLY();
	{
		close(fd);
		explicit_bzero(text, MAX_SECRETS_SIZE);
		pfree(text);
	}
	PG_END_TRY();
}

/* A name is told only if it is a known one: it may be half of a secret */
static void
parse_secrets(KafkaProperty *properties, int *n, char *text, const char *path)
{
	char	   *cursor = text;
	char	   *name;
	char	   *value;
	int			line = 0;

	while (*cursor != '\0')
	{
		char	   *start = cursor;
		char	   *end = start + strcspn(start, "\n");
		const char *detail;
		const char *hint;

		line++;
		cursor = end + (*end != '\0' ? 1 : 0);
		*end = '\0';
		if (!next_pair(&start, "\n", &name, &value))
			continue;
		if (value == NULL || *value == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 errmsg("line %d of secrets file \"%s\" is not of the form name=value",
							line, path)));
		switch (kafka_property_verdict(name, value, &detail, &hint))
		{
			case PROPERTY_ALLOWED:
			case PROPERTY_SECRET:
				add_property(properties, n, name, value);
				break;
			case PROPERTY_UNKNOWN_SECRET:
			case PROPERTY_REFUSED:
			case PROPERTY_BAD_VALUE:
				ereport(ERROR,
						(errcode(ERRCODE_CONFIG_FILE_ERROR),
						 errmsg("line %d of secrets file \"%s\" can't be used", line, path),
						 errdetail("%s", detail),
						 hint ? errhint("%s", hint) : 0));
		}
	}
}
