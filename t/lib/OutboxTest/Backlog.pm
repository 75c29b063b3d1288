
=pod

=head1 NAME

OutboxTest::Backlog - what tests of a publisher with much to do share

=head1 SYNOPSIS

  backlog_of($node, $kafka);
  begin('orders');                     # the publisher rests
  send_numbers('orders', 1, 60_000);
  go();
  is(check('orders'), 0, 'no copies');

=cut

package OutboxTest::Backlog;

use strict;
use warnings;

use Exporter 'import';
use OutboxTest::Cluster;
use Test::More;

use constant KEYS => 500;

our @EXPORT = qw(
  backlog_of
  sql
  begin
  send_numbers
  numbers_sql
  go
  check
);

my ($node, $kafka);

sub backlog_of
{
	($node, $kafka) = @_;
	return;
}

sub sql
{
	my ($sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# A new topic, and a publisher that rests
sub begin
{
	my ($topic) = @_;

	$kafka->create_topic($topic, 4);
	set_conf($node, 'outbox.enabled' => 'off');
	wait_for_value($node, 'postgres',
		q(SELECT state ~ '^resting' FROM outbox.worker WHERE kind = 'publisher'), 't');
	return;
}

# Values are numbers that rise in each key.
sub numbers_sql
{
	my ($topic, $from, $to) = @_;

	return "SELECT count(outbox.send('$topic', n::text, 'k' || n % ${\KEYS}))
		FROM generate_series($from, $to) AS n;";
}

sub send_numbers
{
	sql(numbers_sql(@_));
	return;
}

sub go
{
	set_conf($node, 'outbox.enabled' => 'on');
	return;
}

# All messages are in Kafka, the first copies in order of each key that begins with
# k or p; returns how many second copies there are.
sub check
{
	my ($topic) = @_;
	my (%seen, %last);
	my $copies = 0;
	my $disorder = 0;

	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status <> 'SENT'", '0');
	foreach my $record ($kafka->consume($topic))
	{
		$copies++, next if $seen{ $record->{header}{id} }++;
		next if $record->{key} !~ /^[kp]/;
		$disorder++ if $record->{value} < ($last{ $record->{key} } // 0);
		$last{ $record->{key} } = $record->{value};
	}
	is(scalar(keys %seen), sql("SELECT count(*) FROM outbox.message WHERE topic = '$topic'"),
		'each message is in Kafka');
	is($disorder, 0, 'in the order of its key');
	note("$copies copies");
	return $copies;
}

1;
