# A key is held, and then the partition that it leads to has no leader.

use strict;
use warnings;

use OutboxTest::Broker qw(partition_of);
use OutboxTest::Cluster;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant { PRODUCE => 0, MSG_SIZE_TOO_LARGE => 10 };

my $mock = OutboxTest::Mock->new;
$mock->start;
$mock->create_topic('orders', 2);
my $node = new_outbox_node('main', bootstrap => $mock->bootstrap, extension => ['postgres']);

$node->safe_psql('postgres', "SELECT outbox.set_topic('orders', hold_key_when_dead => true)");

# One for each partition
my @key = map { my $n = $_; (grep { partition_of($_, 2) == $n } ('a' .. 'z'))[0] } (0, 1);

sub put
{
	my ($key, $from, $to) = @_;

	$node->safe_psql('postgres',
		"SELECT outbox.send('orders', n::text, '$key') FROM generate_series($from, $to) AS n");
	return;
}

sub new_is
{
	my ($n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status = 'NEW'", $n);
}

put($_, 1, 1) foreach (@key);
new_is(0);

# together with others, and alone
$mock->push_errors(PRODUCE, MSG_SIZE_TOO_LARGE, MSG_SIZE_TOO_LARGE);
put($key[0], 2, 5);
wait_for_value($node, 'postgres', 'SELECT key, waiting FROM outbox.held_key', "$key[0]|3");

$mock->command('leader orders 0 -1');
$node->safe_psql('postgres', "SELECT outbox.release_key('orders', '$key[0]')");
wait_for_value($node, 'postgres', 'SELECT partition, reason FROM outbox.held', '0|failing');
put($_, 6, 90) foreach (@key);
new_is(88);
is( $node->safe_psql('postgres', "SELECT DISTINCT key FROM outbox.message WHERE status = 'NEW'"),
	$key[0], 'the other partition goes on');

$mock->command('leader orders 0 1');
new_is(0);
my %values;
push @{ $values{ $_->{key} } }, $_->{value} foreach ($mock->consume('orders'));
is_deeply(\%values, { $key[0] => [ 1, 3 .. 90 ], $key[1] => [ 1, 6 .. 90 ] },
	'what waited for its key goes out before what waited for the partition');
wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.key_hold', 0);
wait_for_value($node, 'postgres', 'SELECT count(*) FROM outbox.held', 0);

$node->stop;
$mock->stop;
done_testing();
