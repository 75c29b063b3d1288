# A backlog of many batches, of which one is read and another one marked while
# the one between is under way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Backlog;
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

use constant { MESSAGES => 60_000, BATCH => 4000 };

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
backlog_of($node, $kafka);

# A topic with so many messages that wait
sub pile_up
{
	my ($topic) = @_;

	begin($topic);
	send_numbers($topic, 1, MESSAGES);
	return;
}

sub wait_for_sent
{
	my ($topic, $more) = @_;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) > $more FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'", 't');
}

# The sweep goes back behind all that is sent or under way.
subtest 'late commits' => sub {
	my @late = map { $node->background_psql('postgres') } 1 .. 5;

	$_->query_safe("BEGIN; SELECT outbox.send('late', 'early'::text, 'other')") foreach @late;
	pile_up('late');
	go();
	foreach my $part (1 .. @late)
	{
		wait_for_sent('late', MESSAGES / (@late + 2) * $part);
		$late[ $part - 1 ]->query_safe('COMMIT');
	}
	is(check('late'), 0, 'and but once');
	$_->quit foreach @late;
};

# What the cursors have passed by then was marked, or is gone back for.
subtest 'the server ends meanwhile' => sub {
	pile_up('crash');
	go();
	wait_for_sent('crash', MESSAGES / 3);
	kill9_server($node);
	start_again($node);
	cmp_ok(check('crash'), '<=', 2 * BATCH, 'two batches at most go out again');
};

subtest 'the bridge ends meanwhile' => sub {
	pile_up('bridge');
	go();
	foreach my $part (1 .. 3)
	{
		wait_for_sent('bridge', MESSAGES / 5 * $part);
		kill('KILL', bridge_pids($node));
	}
	cmp_ok(check('bridge'), '<=', 3 * BATCH, 'one batch at most each time goes out again');
};

# A record that the broker refuses leaves nothing of its key behind it unordered.
subtest 'one of them dies' => sub {
	pile_up('dead');
	$kafka->alter_config('dead', 'max.message.bytes' => 2000);
	my $id = sql("SELECT outbox.send('dead', repeat('x', 5000), 'k1')");
	send_numbers('dead', MESSAGES + 1, MESSAGES + 20_000);
	go();
	wait_for_value($node, 'postgres', "SELECT status FROM outbox.message WHERE id = '$id'", 'DEAD');
	sql("SELECT outbox.purge('dead', 'DEAD', '0')");
	is(check('dead'), 0, 'no copies');
};

$node->stop;
$kafka->stop;
done_testing();
