# COMMIT PREPARED while the publisher works off a backlog, of which it reads the
# next batches ahead.

use strict;
use warnings;

use OutboxTest::Backlog;
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Utils;
use Test::More;

use constant PREPARED => 24;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres'],
	conf => 'max_prepared_transactions = ' . PREPARED);
backlog_of($node, $kafka);

# Transactions are prepared before the backlog and in the middle of it.  Of the
# keys of each, one message was committed before it began, and one is captured as
# soon as it is committed.  That is done each time that there is a backlog of some
# batches: then what is captured last is read ahead, perhaps when the publisher
# hasn't begun a pass since.
subtest 'below the cursor and above it' => sub {
	my $captured = 0;
	my $more = sub {
		my ($n) = @_;
		my $from = $captured + 1;

		$captured += $n;
		return numbers_sql('prepared', $from, $captured);
	};
	my $send = sub {
		my ($number, $from, $to) = @_;
		return "SELECT count(outbox.send('prepared', n::text, 'p$number ' || k))
			FROM generate_series($from, $to) AS n, generate_series(1, 8) AS k;";
	};
	my $prepare = sub {
		sql($send->($_, 1, 1) . 'BEGIN;' . $send->($_, 2, 9) . "PREPARE TRANSACTION 'p$_'") foreach @_;
	};

	sql(<<'EOS');
CREATE PROCEDURE wait_for_published(n bigint) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 200000 LOOP
		IF (SELECT published >= n FROM outbox.counters()) THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.001);
	END LOOP;
	RAISE 'waited for % published messages', n;
END $$
EOS
	begin('prepared');
	my $published = sql('SELECT published FROM outbox.counters()');
	$prepare->(1 .. PREPARED / 2);
	sql($more->(10_000));
	$prepare->(PREPARED / 2 + 1 .. PREPARED);
	sql($more->(10_000));
	is(sql('SELECT count(*) FROM pg_prepared_xacts'), PREPARED, 'all are prepared');
	$published += PREPARED * 8;

	my $script = '';
	my $backlog = 20_000;
	foreach my $number (map { ($_, $_ + PREPARED / 2) } 1 .. PREPARED / 2)
	{
		$script .= 'CALL wait_for_published(' . ($published + $captured - $backlog) . ');'
		  . "COMMIT PREPARED 'p$number';" . $send->($number, 10, 10) . $more->(4000);
		$published += 9 * 8;
		$backlog -= 500;
	}
	go();
	sql($script);
	is(check('prepared'), 0, 'and but once');
	is(sql('SELECT count(*) FROM outbox.prepared'), 0, 'nothing is owed');
};

$node->stop;
$kafka->stop;
done_testing();
