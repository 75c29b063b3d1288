# What a message costs in WAL: from capture to SENT and vacuumed, and as a
# result.  Bytes don't depend on the machine or its neighbours, so what the
# bench has found is held on to here.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $n = 5000;
my $payload = 200;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic($_, 1) foreach (qw(orders answers));
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => "autovacuum = off\nfull_page_writes = off\ncheckpoint_timeout = 1h\n",
	extension => ['postgres']);

sub sql
{
	my ($statement) = @_;
	return $node->safe_psql('postgres', $statement);
}

# Bytes of WAL a message that something writes
sub bytes_of
{
	my ($what) = @_;
	my $begin = sql('CHECKPOINT; SELECT pg_current_wal_insert_lsn()');

	$what->();
	return sql("SELECT pg_current_wal_insert_lsn() - '$begin'") / $n;
}

# One order a transaction
sub insert
{
	my ($table) = @_;
	sql("DO \$\$
		BEGIN
			FOR i IN 1 .. $n LOOP
				INSERT INTO $table VALUES (i, repeat('x', $payload - length('{\"id\":,\"note\":\"\"}') - length(i::text)));
				COMMIT;
			END LOOP;
		END \$\$");
	return;
}

sub wait_for_status
{
	my ($status) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status = '$status'", $n);
}

sql(q(
	CREATE TABLE bare (id int PRIMARY KEY, note text);
	CREATE TABLE orders (id int PRIMARY KEY, note text);
	SELECT outbox.set_topic('orders', result_topic => 'answers');
	SELECT outbox.attach('orders', 'orders', key => 'id')));
set_conf($node, 'outbox.enabled', 'off');
wait_for_value($node, 'postgres',
	q(SELECT state FROM outbox.worker WHERE kind = 'publisher'), qr{^resting: outbox.enabled});
my $bare = bytes_of(sub { insert('bare') });
my $captured = bytes_of(sub { insert('orders') }) - $bare;
my $published = bytes_of(sub {
	set_conf($node, 'outbox.enabled', 'on');
	wait_for_status('SENT');
	wait_for_value($node, 'postgres',
		'SELECT bool_and(cursor > (SELECT max(id::text)::uuid FROM outbox.log))
		FROM outbox.lane WHERE lane < 16', 't');
});
my $vacuumed = bytes_of(sub { sql('VACUUM outbox.log') });
is(sql('SELECT round(avg(length(payload_bytes))) FROM outbox.message'),
	$payload, 'payloads are as long as they are meant to be');

my $above = $captured + $published + $vacuumed - $payload;
note(sprintf('bare %.1f, captured %.1f, published %.1f, vacuumed %.1f', $bare, $captured,
		$published, $vacuumed));
cmp_ok($above, '<=', 290, "WAL a message above its payload: $above");

my $results = bytes_of(sub {
	$kafka->produce('answers', map { { key => $_, value => 'SUCCESS' } }
		  split /\n/, sql('SELECT id FROM outbox.log ORDER BY id'));
	wait_for_status('CONFIRMED');
});
note(sprintf('result %.1f', $results));
cmp_ok($results, '<=', 130, "and of its result: $results");

$kafka->stop;
done_testing();
