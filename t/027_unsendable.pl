# Replies and dead letters that can't be written, because of what somebody else
# put into the record: no more than that record is concerned.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach (qw(orders replies jobs jobs-dlt));
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres'],
	conf => "outbox.max_message_bytes = 1000\noutbox.kafka_config = 'fetch.wait.max.ms=10'");

$node->safe_psql('postgres', q{
	CREATE TABLE seen (topic text, payload text);
	CREATE FUNCTION see(record outbox.record) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO seen VALUES (record.topic, record.payload);
		IF record.payload LIKE 'bad%' THEN
			RAISE EXCEPTION 'no';
		END IF;
	END $$;
	SELECT outbox.subscribe('orders', 'see(outbox.record)', reply_topic => 'replies');
	SELECT outbox.subscribe('jobs', 'see(outbox.record)', dead_letter => true)});

# The id of the nth message
sub id
{
	return sprintf('0195c0de-0000-7000-8000-%012d', $_[0]);
}

# A record whose correlation id is as long as that
sub record
{
	my ($n, $value, $length) = @_;
	return {
		key => id($n), value => $value, partition => 0,
		headers => [ [ id => id($n) ], [ kafka_correlationId => 'x' x $length ] ]
	};
}

# ---------- replies ----------

$mock->produce('orders', record(1, 'one', 600), record(2, 'bad two', 600), record(3, 'three', 16));
wait_for_value($node, 'postgres', q{SELECT string_agg(payload, ', ') FROM seen}, 'three');
is( $node->safe_psql('postgres',
		q{SELECT "offset", payload, sqlstate, error FROM outbox.dead_record ORDER BY number}),
	qq{0|one|54000|message for topic "replies" is too large\n}
	  . q{1|bad two|54000|message for topic "replies" is too large},
	'a record that nobody can be told of is dead');
is( $node->safe_psql('postgres', q{SELECT key, payload FROM outbox.message}), id(3) . '|SUCCESS',
	'the next one is answered');

# The reply to a copy has the headers of the copy.
$mock->produce('orders', record(3, 'three', 600), record(4, 'four', 16));
wait_for_value($node, 'postgres', q{SELECT string_agg(payload, ', ') FROM seen}, 'three, four');
is( $node->safe_psql('postgres',
		q{SELECT records_handled, records_repeated, records_dead FROM outbox.stat}),
	'2|0|3', 'a reply that can not be repeated makes the copy dead, and stops nothing');

# ---------- dead letters ----------

$mock->produce('jobs', { key => 'k', value => 'bad ' . 'x' x 800, partition => 0 },
	{ key => 'k', value => 'bad', partition => 0 }, { key => 'k', value => 'good', partition => 0 });
wait_for_value($node, 'postgres', q{SELECT payload FROM seen WHERE topic = 'jobs'}, 'good');
is( $node->safe_psql('postgres',
		q{SELECT "offset", length(payload), error FROM outbox.dead_record
		  WHERE topic = 'jobs' ORDER BY number}),
	"0|804|no\n1|3|no", 'both are dead');
is($node->safe_psql('postgres', q{SELECT payload FROM outbox.message WHERE topic = 'jobs-dlt'}),
	'bad', 'and the one that fits is sent as a dead letter');
is($node->safe_psql('postgres', q{SELECT restarts FROM outbox.worker WHERE kind = 'consumer'}),
	'0', 'the consumer has not ended');

$node->stop;
$mock->stop;
done_testing();
