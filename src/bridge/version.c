/*-------------------------------------------------------------------------
 *
 * version.c
 *	  What is known to be wrong with which version of librdkafka.
 *
 * Only what costs something here.  Versions before 2.3.0 can take their own
 * repeated request for a fatal error after a connection was lost: then there
 * is a new bridge, and nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>

#include "client.h"

typedef struct VersionFault
{
	int			since;			/* as rd_kafka_version() has it */
	int			mended;
	const char *what;
} VersionFault;

/* major, minor, revision; the last byte is 0xff in a release */
#define VERSION(a, b, c)	((a) << 24 | (b) << 16 | (c) << 8)

static const VersionFault faults[] = {
	{VERSION(2, 2, 0), VERSION(2, 5, 0), "it can fail to repeat a large request"},
	{VERSION(2, 4, 0), VERSION(2, 10, 0), "it can crash when a topic is made anew or can't be asked about"},
	{VERSION(2, 10, 0), VERSION(2, 10, 1), "it may not return to the brokers after all of them were down"},
};

/* Writes what is known to be wrong with a version, "" if nothing */
void
version_faults(int version, char *text, size_t size)
{
	size_t		len = 0;

	text[0] = '\0';
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]) && len < size; i++)
	{
		const VersionFault *fault = &faults[i];

		if (version < fault->since || version >= fault->mended)
			continue;
		len += snprintf(text + len, size - len, "%s%s (mended in %d.%d.%d)",
						len > 0 ? "; " : "", fault->what, fault->mended >> 24,
						fault->mended >> 16 & 0xff, fault->mended >> 8 & 0xff);
	}
}
