# Several publishers: what one of them does for all, and what each keeps for
# itself.  The order by key through faults is in t/018_publishers.pl.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $keys = 40;

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic($_, 1) foreach ('orders', 'later', 'asked', 'results', 'prepared');
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => 'outbox.publishers = 4',
	extension => ['postgres']);

# One message a key, so that each publisher has some
sub send_round
{
	my ($topic, $round, $more) = @_;

	return $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', '$round'::text, 'key ' || n" . ($more // '') . ")"
		  . " FROM generate_series(1, $keys) AS n");
}

sub publishers_are
{
	my ($n) = @_;

	return wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.worker
		  WHERE kind = 'publisher' AND pid IS NOT NULL), $n);
}

sub change_publishers
{
	my ($n) = @_;

	set_conf($node, 'outbox.publishers' => $n);
	return publishers_are($n);
}

sub all_sent
{
	my ($topic) = @_;

	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status <> 'SENT'", '0');
}

# The values of each key, and how many keys have just these
sub rounds_of
{
	my ($topic) = @_;
	my %of;
	my %keys_with;

	push @{ $of{ $_->{key} } }, $_->{value} foreach $mock->consume($topic);
	$keys_with{ join(' ', @$_) }++ foreach values %of;
	return join(', ', map { "$_: $keys_with{$_}" } sort keys %keys_with);
}

publishers_are(4);

subtest 'a paused topic, while their number changes' => sub {
	send_round('orders', 'a');
	all_sent('orders');
	$node->safe_psql('postgres', "SELECT outbox.pause('orders')");
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', '4');
	send_round('orders', 'b');
	foreach my $n (2, 3, 1, 4)
	{
		change_publishers($n);
		wait_for_value($node, 'postgres',
			"SELECT count(*) = $n AND bool_and(publishers = $n) FROM outbox.held", 't');
		send_round('orders', "with $n");
	}
	is(rounds_of('orders'), "a: $keys", 'its messages wait');
	$node->safe_psql('postgres', "SELECT outbox.resume('orders')");
	all_sent('orders');
	is(rounds_of('orders'), "a b with 2 with 3 with 1 with 4: $keys", 'and go on in order');
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', '0');
};

subtest 'what comes out of its turn' => sub {
	send_round('later', 'hour', ", deliver_at => now() + interval '1 hour'");
	send_round('later', 'now');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'later' AND status = 'SENT'), $keys);
	$node->safe_psql('postgres', "SELECT outbox.pause('later')");
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', '4');
	push_time($node);
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.delayed', '0');
	is(rounds_of('later'), "now: $keys", 'what is due while its topic is held waits');
	$node->safe_psql('postgres', "SELECT outbox.resume('later')");
	all_sent('later');
	is(rounds_of('later'), "now hour: $keys", 'and goes out then');

	is($node->safe_psql('postgres', "SELECT outbox.resend('later', '-infinity', 'infinity')"),
		2 * $keys, 'sent again by topic');
	all_sent('later');
	is(rounds_of('later'), "now hour hour now: $keys", 'in the order of capture');
};

subtest 'a prepared transaction' => sub {
	$node->safe_psql('postgres',
		"BEGIN;
		 SELECT outbox.send('prepared', 'p'::text, 'key ' || n) FROM generate_series(1, $keys) AS n;
		 PREPARE TRANSACTION 'p'");
	send_round('orders', 'meanwhile');
	all_sent('orders');
	$node->safe_psql('postgres', "COMMIT PREPARED 'p'");
	all_sent('prepared');
	is(rounds_of('prepared'), "p: $keys", 'each publisher goes back for it');
	wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.prepared', '0');
};

subtest 'recovery' => sub {
	$node->safe_psql('postgres',
		"SELECT outbox.set_topic('asked', 'results', result_timeout => '2 s', max_attempts => 2)");
	send_round('asked', 'x');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message
		  WHERE topic = 'asked' AND status = 'DEAD' AND attempts = 2), $keys);
	is(rounds_of('asked'), "x x: $keys", "the first one sees to every publisher's messages");
};

$node->stop;
$mock->stop;
done_testing();
