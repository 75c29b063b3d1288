/*-------------------------------------------------------------------------
 *
 * key_partition.c
 *	  Which partition of its topic a record goes to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "key_partition.h"

/* The hash of Apache Kafka's clients: MurmurHash2 with a seed of their own */
static uint32
murmur2(const unsigned char *data, int len)
{
	const uint32 m = 0x5bd1e995;
	uint32		h = 0x9747b28c ^ (uint32) len;

	for (; len >= 4; data += 4, len -= 4)
	{
		uint32		k = data[0] | (uint32) data[1] << 8 | (uint32) data[2] << 16 |
			(uint32) data[3] << 24;

		k *= m;
		k ^= k >> 24;
		h = (h * m) ^ (k * m);
	}
	if (len > 0)
	{
		for (int i = 0; i < len; i++)
			h ^= (uint32) data[i] << (8 * i);
		h *= m;
	}
	h ^= h >> 13;
	h *= m;
	return h ^ (h >> 15);
}

int32
key_partition(const char *key, int len, int32 partitions)
{
	return (int32) (murmur2((const unsigned char *) key, len) & 0x7fffffff) % partitions;
}

PG_FUNCTION_INFO_V1(outbox_key_partition);

Datum
outbox_key_partition(PG_FUNCTION_ARGS)
{
	char	   *key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *utf8 = pg_server_to_any(key, strlen(key), PG_UTF8);
	int32		partitions = PG_GETARG_INT32(1);

	if (partitions < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a topic has 1 partition or more, not %d", partitions)));
	PG_RETURN_INT32(key_partition(utf8, strlen(utf8), partitions));
}
