# Positions in result topics: whatever happens to the topic, to the brokers or
# to us, each result takes effect once, and nothing is lost in silence.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new(
	authorizer => 1,
	config => {
		'log.retention.check.interval.ms' => 200,
		'log.initial.task.delay.ms' => 200,
		'log.segment.delete.delay.ms' => 0,
		'log.cleaner.enable' => 'true',
		'log.cleaner.dedupe.buffer.size' => 4_000_000,
		'log.cleaner.backoff.ms' => 100
	});
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Results->new($node, $kafka);

sub successes
{
	return map { { key => $_, value => 'SUCCESS' } } @_;
}

# The topic is another one from now on, under the same name
sub make_anew
{
	my ($results) = @_;

	$kafka->delete_topic($results);
	wait_until("$results is gone", sub { !$kafka->topics->{$results} });
	$kafka->create_topic($results, 1);
	return;
}

# How many warnings in the log tell of a lost position in the topic
sub warnings_of
{
	my ($results) = @_;
	my $n = () =
	  slurp_file($node->logfile) =~ /WARNING:  position \d+ in result topic "$results" partition 0 is lost/g;

	return $n;
}

subtest 'a topic that is made later, and grows' => sub {
	my ($topic, $results) = ($test->new_name('orders'), $test->new_name('results'));

	$kafka->create_topic($topic, 1);
	$test->set_topic($topic, $results);
	$test->wait_for_state(qr/^topic "$results" is missing/);
	like(slurp_file($node->logfile), qr/LOG:  result topic "$results" is missing/,
		'a missing one shows');
	$kafka->create_topic($results, 1);
	my @ids = $test->messages($topic, 3);
	$kafka->produce($results, successes($ids[0]));
	$test->counts_are($results, { applied => 1 }, 'it is read once it is there');
	$test->wait_for_state('reading 1 partition of 1 topic');

	$kafka->add_partitions($results, 3);
	$kafka->produce($results,
		map { { partition => $_, key => $ids[$_], value => 'SUCCESS' } } 1, 2);
	$test->counts_are($results, { applied => 3 }, 'new partitions are');
	$test->wait_for_state('reading 3 partitions of 1 topic');
	is($test->lost($results), 0, 'no position was lost');
};

subtest 'a topic that may not be read' => sub {
	my ($topic, $results) = $test->new_topics();
	my @ids = $test->messages($topic, 2);

	$kafka->produce($results, successes($ids[0]));
	$test->counts_are($results, { applied => 1 }, 'it is read');
	$kafka->acl_add('User:ANONYMOUS', 'deny', 'read', 'topic', $results);
	$test->wait_for_state(qr/^topic "$results" is denied/);
	$kafka->produce($results, successes($ids[1]));
	$kafka->acl_remove('User:ANONYMOUS', 'deny', 'read', 'topic', $results);
	$test->counts_are($results, { applied => 2 }, 'it is read again when that is over');
	is($test->lost($results), 0, 'no position was lost');
};

# The new topic has fewer records than were read of the old one, as many, or more
my %records = ('fewer' => 2, 'as many' => 5, 'more' => 12);

foreach my $when ('while running', 'while running, with a restart', 'while stopped')
{
	subtest "made anew $when" => sub {
		my (%topic, %results, %old, %new);

		foreach my $case (sort keys %records)
		{
			($topic{$case}, $results{$case}) = $test->new_topics();
			$old{$case} = [ $test->messages($topic{$case}, 5) ];
			$new{$case} = [ $test->messages($topic{$case}, $records{$case}) ];
			$kafka->produce($results{$case}, successes(@{ $old{$case} }));
		}
		$test->counts_are($results{$_}, { applied => 5 }, "$_: the old one was read")
		  foreach (sort keys %records);

		$node->stop if $when eq 'while stopped';
		foreach my $case (sort keys %records)
		{
			make_anew($results{$case});
			$kafka->produce($results{$case}, successes(@{ $new{$case} }));
		}

		# whatever was read of the new ones by then
		$node->restart if $when eq 'while running, with a restart';
		$node->start if $when eq 'while stopped';
		foreach my $case (sort keys %records)
		{
			$test->all_confirmed("$case: no result is lost", @{ $new{$case} });
			cmp_ok($test->lost($results{$case}), '>=', 1, 'that it happened shows');
			cmp_ok(warnings_of($results{$case}), '>=', 1, 'in the log, too');
			my ($last) = $test->messages($topic{$case}, 1);
			$kafka->produce($results{$case}, successes($last));
			$test->all_confirmed('reading goes on', $last);
		}
	};
}

subtest 'removed by retention' => sub {
	my ($topic, $results) = $test->new_topics();
	my @ids = $test->messages($topic, 8);
	my $remove = sub {
		$kafka->alter_config($results, 'retention.ms' => 1, 'segment.ms' => 1);
		wait_until('the records are removed',
			sub { my ($low, $high) = $kafka->watermarks($results); $low == $high });
		$kafka->alter_config($results, 'retention.ms' => 604_800_000);
	};

	# those that were read
	$kafka->produce($results, successes(@ids[ 0, 1 ]));
	$test->counts_are($results, { applied => 2 }, 'read');
	$node->stop;
	$remove->();
	$node->start;
	$kafka->produce($results, successes($ids[2]));
	$test->counts_are($results, { applied => 3 }, 'the next one is read');
	is($test->lost($results), 0, 'it matters not that those before are gone');

	# those that were not
	$node->stop;
	$kafka->produce($results, successes(@ids[ 3, 4 ]));
	$remove->();
	$node->start;
	$kafka->produce($results, successes($ids[5]));
	$test->all_confirmed('the next one is read', $ids[5]);
	is($test->lost($results), 1, 'that some are missing shows');

	# all that there were, and then the topic, so that no record is left to
	# know it by: not even its offsets are
	$node->stop;
	$remove->();
	$node->start;
	$test->wait_for(
		"SELECT anchor_offset, anchor_timestamp IS NULL FROM outbox.consumer_offset WHERE topic = '$results'",
		'6|t');
	$node->stop;
	make_anew($results);
	$kafka->produce($results, successes(($ids[6]) x 7, $ids[7]));
	$node->start;
	$test->all_confirmed('a new one is known by its start', @ids[ 6, 7 ]);
	is($test->lost($results), 2, 'and shows');
};

subtest 'brokers, bridge and server that die' => sub {
	my ($topic, $results) = $test->new_topics(partitions => 3);
	my @ids = $test->messages($topic, 1200);
	my $pid = sub {
		return $test->query(q(SELECT pid FROM outbox.worker WHERE kind = 'consumer'));
	};
	my @deaths = (
		sub {
			my ($bridge) = $test->query(
				q(SELECT bridge_pid FROM outbox.worker WHERE kind = 'consumer'));
			kill('KILL', $bridge) if $bridge;
		},
		sub {
			my $consumer = $pid->();
			kill('KILL', $consumer) if $consumer;
			wait_until('the server recovers',
				sub { my ($status) = $node->psql('postgres', 'SELECT 1'); $status == 0 });
		},
		sub {
			$kafka->kill9;
			$kafka->start;
		},
		sub {
			kill9_server($node);
			start_again($node);
		});

	# each death comes with records still under way
	foreach my $part (0 .. 11)
	{
		$kafka->produce($results, successes(@ids[ $part * 100 .. $part * 100 + 99 ]));
		$deaths[ $part % @deaths ]->();
	}
	$test->all_confirmed('all results take effect', @ids);
	$test->counts_are($results, { applied => 1200 }, 'each of them once');
	is($test->lost($results), 0, 'no position was lost');
};

$node->stop;
done_testing();
