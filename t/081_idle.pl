# Workers with nothing to do sleep: a wake-up is for many partitions at a time.
#
# The time after traffic is measured, when the consumer looks again whether its
# partitions' logs are those it read: rarely, and at all of them together.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

my $partitions = 12;
my $seconds = 40;       # more than a verification is away

# Wake-ups a second that nobody has to explain; each partition for itself makes
# some 4 in the consumer every 23 s: 2 in all
my %most = (publisher => 0.5, consumer => 0.8);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Results->new($node, $kafka);
my ($topic, $results) = $test->new_topics(partitions => $partitions);

# How often a process went to sleep by itself
sub switches
{
	my ($pid) = @_;
	my ($count) = slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m;
	return $count;
}

my @ids = $test->messages($topic, 5 * $partitions);
my $n = 0;
$kafka->produce($results,
	map { { partition => $n++ % $partitions, key => $_, value => 'SUCCESS' } } @ids);
$test->all_confirmed('there was traffic in all partitions', @ids);

my %pid = map { $_ => (outbox_pids($node, $_))[0] } keys %most;
my %before = map { $_ => switches($pid{$_}) } keys %pid;
my $start = time;
sleep($seconds);
foreach my $kind (sort keys %pid)
{
	my $rate = (switches($pid{$kind}) - $before{$kind}) / (time - $start);

	note(sprintf("%s: %.2f wake-ups a second", $kind, $rate));
	cmp_ok($rate, '<', $most{$kind}, "the $kind sleeps");
}

# ... and is awake at once when there is something
my ($late) = $test->messages($topic, 1);
$kafka->produce($results, { partition => 0, key => $late, value => 'SUCCESS' });
$test->all_confirmed('a result after the rest', $late);

$node->stop;
$kafka->stop;
done_testing();
