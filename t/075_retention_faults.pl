# Retention under load and through crashes: every message of a topic that waits
# meanwhile is published in the end, in order, whatever was emptied around it.

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

my $rounds = $ENV{STRESS} ? 400 : 60;
my $seed = $ENV{FAULT_SEED} // time() % 100000;
srand($seed);
note("FAULT_SEED=$seed");

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach ('orders', 'paused');
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.retention = '14min'\noutbox.publishers = 2",
	start => 0);
start_with_clock($node);

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

sql(q(
	CREATE EXTENSION outbox;
	CREATE TABLE sent (n bigserial PRIMARY KEY, id uuid);
	SELECT outbox.pause('paused')));

# One transaction after the other, so that the numbers are in the order of capture
sub send_some
{
	return sql(q(
		DO $$ BEGIN
			FOR i IN 1 .. 20 LOOP
				INSERT INTO sent (id) VALUES (NULL);
				UPDATE sent SET id = outbox.send('paused', n::text, 'k')
					WHERE n = currval('sent_n_seq');
				PERFORM outbox.send('orders', 'x'::text, 'k' || i);
			END LOOP;
		END $$));
}

sub crash
{
	kill9_server($node);
	forget_killed($node);
	start_with_clock($node);
	return;
}

# What is SENT long ago becomes NEW again, where that is still possible
sub resend
{
	sql(q(SELECT outbox.resend(id) FROM (SELECT id FROM outbox.message
		WHERE topic = 'orders' AND status = 'SENT' ORDER BY random() LIMIT 3) AS m));
	return;
}

my $snapshot;

sub toggle_snapshot
{
	if (defined $snapshot)
	{
		eval { $snapshot->query('COMMIT'); $snapshot->quit };
		undef $snapshot;
		return;
	}
	$snapshot = $node->background_psql('postgres');
	$snapshot->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM sent');
	return;
}

foreach my $round (1 .. $rounds)
{
	send_some();
	push_clock($node, 20 + int(rand(100)));
	my $what = int(rand(12));
	if ($what == 0) { undef $snapshot; crash() }
	elsif ($what == 1) { resend() }
	elsif ($what == 2) { toggle_snapshot() }
	elsif ($what == 3) { kill('KILL', bridge_pids($node)) }
	sql('SELECT outbox.config_changed()');
}
toggle_snapshot() if defined $snapshot;

my $n = sql("SELECT count(*) FROM sent WHERE id IS NOT NULL");
is(sql("SELECT count(*) FROM outbox.message AS m JOIN sent AS s USING (id) WHERE status = 'NEW'"),
	$n, 'all that waits is there');
is(sql("SELECT count(*) FROM outbox.log WHERE topic = 'paused'"), $n, 'and nothing is there twice');
sql("SELECT outbox.resume('paused')");
wait_for_value($node, 'postgres', "SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');

my %seen;
my @first = grep { !$seen{$_}++ } map { $_->{value} } $mock->consume('paused');
is(scalar(@first), $n, 'all of it is published');
is_deeply(\@first, [ sort { $a <=> $b } @first ], 'in order');
push_clock($node, 40 * 60);
sql("SELECT outbox.config_changed(); SELECT outbox.send('orders', 'last'::text)");
wait_for_value($node, 'postgres', 'SELECT count(*) <= 1 FROM outbox.log', 't');
pass('and then it goes');

done_testing();
$node->stop;
$mock->stop;
