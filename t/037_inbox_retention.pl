# Retention of the inbox: its segments take turns, an old one is forgotten, and
# no record is handled twice while the ring moves on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Clock;
use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('records', 2);
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.inbox_retention = '4min'\noutbox.consumers = 2",
	start => 0);
start_with_clock($node);

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# Waits for the lock whose number is the record's partition if it says so
sql(q(
	CREATE EXTENSION outbox;
	CREATE TABLE handled (payload text, partition int);
	CREATE FUNCTION take(record outbox.record) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO handled VALUES (record.payload, record.partition);
		IF record.payload LIKE 'wait%' THEN
			PERFORM pg_advisory_xact_lock_shared(record.partition);
		END IF;
	END $$;
	SELECT outbox.subscribe('records', 'take(outbox.record)', handler_timeout => '1 day')));

my $number = 0;

sub new_id
{
	return sprintf('0195c0de-0000-7000-8000-%012d', ++$number);
}

sub produce
{
	my ($id, $value, $partition) = @_;
	$mock->produce('records',
		{ value => $value, partition => $partition // 0, headers => [ [ 'id', $id ] ] });
	return;
}

sub wait_sql
{
	my ($sql, $expected, $name) = @_;
	return wait_for_value($node, 'postgres', $sql, $expected) && defined $name && pass($name);
}

sub handled_are
{
	my ($expected, $name) = @_;
	return wait_sql("SELECT string_agg(payload, ' ' ORDER BY payload) FROM handled
		WHERE payload <> 'filler'", $expected, $name);
}

sub segments_are
{
	my ($expected, $name) = @_;
	return wait_sql(
		q(SELECT string_agg(segment || ':' || n, ' ' ORDER BY segment)
		  FROM (SELECT segment, count(*) AS n FROM outbox.inbox GROUP BY segment) AS s),
		$expected, $name);
}

sub minutes
{
	my ($n) = @_;
	push_clock($node, 60 * $n);
	sql('SELECT outbox.config_changed()');
	return;
}

# Until the next segment is the current one, which shared memory says alone
sub advanced
{
	my ($from) = @_;
	my $id = new_id();

	minutes(1);
	return wait_until('the ring moves on', sub {
		produce(new_id(), 'filler', 1);
		sql("SELECT count(*) > 0 FROM outbox.inbox WHERE segment > $from") eq 't';
	});
}

my $first = new_id();
produce($first, 'a');
handled_are('a', 'handled');
segments_are('0:1', 'it is known in the first segment');
advanced(0);
produce($first, 'a');
wait_sql('SELECT records_repeated FROM outbox.subscription', '1', 'and known when others follow');
restart_with_clock($node);
produce($first, 'a');
wait_sql('SELECT records_repeated FROM outbox.subscription', '2', 'and known after a restart');

minutes(16);
wait_sql('SELECT count(*) FROM outbox.inbox WHERE segment = 0', '0', 'then it is forgotten');
produce($first, 'a');
handled_are('a a', 'and handled as if it were new');

subtest 'a copy while the ring moves on' => sub {
	my $id = new_id();
	my $session = $node->background_psql('postgres');
	my $from = sql('SELECT max(segment) FROM outbox.inbox');

	sql('DELETE FROM handled');
	$session->query_safe('SELECT pg_advisory_lock(0)');
	produce($id, 'wait', 0);
	wait_sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'", '1',
		'it is being handled');
	produce($id, 'wait', 1);
	handled_are('wait', 'a copy of it was quicker');
	advanced($from);
	$session->query_safe('SELECT pg_advisory_unlock(0)');
	$session->quit;
	produce(new_id(), 'last', 0);
	wait_sql("SELECT count(*) FROM handled WHERE payload = 'last'", '1');
	is(sql("SELECT count(*) FROM handled WHERE payload = 'wait'"), '1', 'it was handled once');
};

subtest 'nobody leaves a segment before the others can' => sub {
	my $session = $node->background_psql('postgres');
	my $current = sql('SELECT segment FROM outbox.inbox ORDER BY handled_at DESC LIMIT 1');

	sql(qq(
		CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS \$\$
			BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END \$\$;
		CREATE TRIGGER wait_here AFTER INSERT ON outbox.inbox_$current
			FOR EACH ROW EXECUTE FUNCTION wait_here()));
	$session->query_safe('SELECT pg_advisory_lock(7)');
	produce(new_id(), 'slow to commit', 0);
	wait_sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'", '1',
		'it is about to commit');
	minutes(2);
	wait_sql('SELECT retention_waits_for FROM outbox.stat',
		qr/^segment $current of the inbox waits for a lock of process \d+/, 'it is waited for');
	$session->query_safe('SELECT pg_advisory_unlock(7)');
	$session->quit;
	wait_sql('SELECT retention_waits_for IS NULL FROM outbox.stat', 't', 'then the ring moves on');
	sql('DROP FUNCTION wait_here() CASCADE');
};

subtest 'a reader' => sub {
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN; SELECT count(*) FROM outbox.inbox');
	minutes(20);
	wait_sql('SELECT retention_waits_for FROM outbox.stat',
		qr/of the inbox waits for a lock of process \d+/, 'it is waited for');
	produce(new_id(), 'meanwhile', 1);
	wait_sql("SELECT count(*) FROM handled WHERE payload = 'meanwhile'", '1', 'records are handled');
	$session->query_safe('COMMIT');
	$session->quit;
	wait_sql("SELECT count(*) FROM outbox.inbox
			  WHERE handled_at < clock_timestamp() - interval '15 min'", '0',
		'then the segment is forgotten');
};

done_testing();
$node->stop;
$mock->stop;
